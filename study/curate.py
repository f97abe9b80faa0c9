"""The imitation data: from raw downloads to a training set, how varied it is, and prompts proven not to leak.

    python -m study.curate mix --sharegpt FILE... --hc3 FILE... --discord FILE... --out DIR     # ShareGPT-Mix
    python -m study.curate amounts DIR/mix.jsonl.gz --tokenizer T --tokens 0.3M 20M --out DIR   # nested subsets
    python -m study.curate diversity FILE                                                       # BLEU of the nearest query
    python -m study.curate leakage PROMPTS --train FILE --threshold 20                          # drops what leaks

Only the command line is here: mix.py, amounts.py, similar.py. Left out: synthesis (study.synthesize).
"""

import argparse
import sys

from study import mix, similar


def parser():
    p = argparse.ArgumentParser(prog="python -m study.curate", description=__doc__.split("\n\n")[0])
    commands = p.add_subparsers(dest="command", required=True, metavar="COMMAND")
    mix.flags(commands)
    similar.flags(commands)
    return p


def main(argv=None):
    args = parser().parse_args(argv)
    try:
        args.run(args)
    except BrokenPipeError:  # `| head`
        sys.stderr.close()
    except (ValueError, OSError) as error:
        print(f"curate.py: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
