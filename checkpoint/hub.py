"""Models by their name on the Hugging Face hub, ORG/NAME, fetched into the hub's own cache.

Only what is read here is fetched: config.json, safetensors, the tokenizer's files. Needs the
package huggingface_hub. Left out: revisions, data sets, files that run code when opened.
"""

import functools

WANTED = ["*.json", "*.safetensors", "*.jinja", "tokenizer.model", "merges.txt"]


@functools.cache
def folder_of(name: str) -> str:
    """The folder of a model's files, fetched where they are not; ValueError with the remedy."""
    import huggingface_hub
    from huggingface_hub import errors

    try:
        return huggingface_hub.snapshot_download(
            name, allow_patterns=WANTED, ignore_patterns=["*/*"]
        )
    except errors.GatedRepoError:
        why = "its owners ask for consent: accept it on the model's page, then `hf auth login`"
    except (errors.RepositoryNotFoundError, errors.RevisionNotFoundError):
        why = "the hub has no public model of that name: check it, or name a path"
    except (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled):
        why = "the hub cannot be reached and it was not fetched before: copy the folder here"
    except (OSError, ValueError, errors.HfHubHTTPError) as error:
        said = " ".join(str(error).split())[:200]
        why = f"the hub did not give it ({said}): try again, or copy the folder here"
    raise ValueError(f"{name} does not exist here, and {why}") from None
