"""A model path opened for use: its tokenizer, devices and compiled programs.

    opened = open_model("out/run")
    prompt = opened.chat_ids([{"from": "human", "value": "Hi"}])
    for output in opened.generate([prompt], Sampling(max_new=64)):
        print(output.text)

For evaluation, the chat in the terminal and serving. Weights are read when they are first needed,
in the form that scoring or decoding wants; one form is held at a time.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence

import jax
import jax.numpy as jnp

import model
import sharding
from checkpoint import paths, vocabulary
from checkpoint.load import load_weights
from decoding import cache, memory
from decoding.batch import Watch
from decoding.decoder import Decoder
from decoding.likelihood import Scorer
from decoding.records import Output, Request, Sampling, shared_length
from host.terminal import say
from text import templates, tokenizer

OWN = "own"  # the chat template that a model brings, which is none of ours


def open_model(
    path: str,
    tokenizer_path: str | None = None,
    preset: str | None = None,
    mesh: str | None = None,
    dtype: str | None = None,
    batch: int = 16,
    length: int | None = None,
    taken: int = 0,
) -> "Opened":
    """Open a model path; ValueError where it, its tokenizer or the mesh do not fit one another.

    tokenizer_path: by default the one beside the model. preset: what an EasyLM stream is. mesh:
    "8x1", by default every device x 1. dtype: by default float32 on CPUs, else bfloat16. batch:
    texts generated at once; times 128 tokens when scoring. length: positions of each that memory
    is planned for; by default none yet: generate plans for its own texts. taken: bytes a device
    planned for other models.
    """
    config = paths.model_config(path, preset)
    tok = vocabulary.model_tokenizer(path, config, tokenizer_path)
    if tok.normalises:
        say(f"note: {tok.warning}")
    template = vocabulary.trained_template(path, tok) or (OWN if tok.chat_template else None)
    devices, note = sharding.start_devices(mesh)
    if note:
        say(f"note: {note}")
    on_cpu = devices.devices.flat[0].platform == "cpu"
    compute = jnp.dtype(dtype or ("float32" if on_cpu else "bfloat16"))
    sharding.use_precision_of(compute)
    d, t = (devices.shape[axis] for axis in devices.axis_names)
    layout = model.make_layout(config, d, t, fsdp=False)
    length, room = min(length or 0, config.P), memory.device_room(devices)
    memory.check_fit(config, d, t, compute, batch, length, room, taken)
    # over data the weights are replicas on purpose
    for line in model.replication_notes(config, layout._replace(data=1)):
        say(f"note: {line}")
    return Opened(path, config, tok, devices, layout, compute, batch, template, length, room)


@dataclasses.dataclass
class Opened:
    """A model on its devices. What is generated and scored is of the weights of `step`."""

    path: str
    config: model.Config
    tok: tokenizer.Tokenizer
    mesh: jax.sharding.Mesh
    layout: model.Layout
    dtype: jnp.dtype
    batch: int
    template: str | None  # of conversations: a name of ours, or OWN; None: nothing says which
    length: int = 0  # positions of each text that memory is planned for
    room: float | None = None  # bytes of a device when the model was opened; None: not known
    step: int | None = None  # a checkpoint of a run; None: the last, or the only weights there are
    _weights: dict = dataclasses.field(default_factory=dict)  # {"stacked" or "decoding": weights}
    _decoder: Decoder | None = None  # made when there are weights whose specs it is compiled for

    @property
    def roles(self) -> bool:
        """Whether the vocabulary has tokens that open a turn."""
        return self.tok.user is not None

    @property
    def start(self) -> list[int]:
        """Ids that a plain text begins with: bos where the tokenizer puts one."""
        return self.tok.start

    @property
    def stop_ids(self) -> frozenset[int]:
        """Ids that end what the model says."""
        return templates.stop_ids(self.tok, None if self.template == OWN else self.template)

    @property
    def device(self) -> str:
        return f"{self.mesh.devices.size} x {self.mesh.devices.flat[0].device_kind}"

    def fingerprints(self) -> dict[str, str]:
        """What a result is of: the weights of this step and the tokenizer, by their content."""
        return {
            "model_fingerprint": paths.fingerprint(self.path, self.step),
            "tokenizer_fingerprint": self.tok.fingerprint,
        }

    def at(self, step: int | None) -> None:
        """Go to a checkpoint of a run; programs stay compiled."""
        self.step, self._weights = step, {}

    def take_over(self, before: "Opened") -> None:
        """Use the compiled programs of a model of the same shape, which then holds no weights."""
        before._weights = {}
        shapes = [(o.config, o.mesh, o.layout, o.dtype) for o in (before, self)]
        if shapes[0] == shapes[1]:
            self._decoder = before._decoder
            if "scorer" in before.__dict__:  # made already
                self.scorer = before.scorer

    def _load(self, apart):
        self._weights = {}  # before the next are read: two forms would take twice the memory
        where = self.mesh, self.layout
        return load_weights(self.path, self.config, *where, self.dtype, self.step, apart)

    @functools.cached_property
    def scorer(self) -> Scorer:
        return Scorer(self.config, self.mesh, self.layout, self.dtype)

    def score(self, requests: list[Request], share: bool = True) -> Iterator:
        """Scorer.score on this model's weights."""
        if "stacked" not in self._weights:
            self._weights = {"stacked": self._load(apart=False)}
        return self.scorer.score(self._weights["stacked"], requests, self.batch, share)

    def decoder(self) -> tuple[Decoder, dict]:
        """The Decoder and its weights."""
        if "decoding" not in self._weights:
            layers = self._load(apart=True)
            weights, specs = cache.for_decoding(layers, self.config, self.mesh, self.layout)
            self._weights = {"decoding": weights}
            if self._decoder is None:
                self._decoder = Decoder(self.config, self.mesh, self.layout, specs, self.dtype)
        assert self._decoder
        return self._decoder, self._weights["decoding"]

    def generate(
        self,
        prompts: list[list[int]],
        sampling: Sampling,
        names: Sequence[int] | None = None,
        watch: Watch | None = None,
    ) -> Iterator[Output]:
        """Decoder.generate on this model's weights; a sample also ends at the model's own ends.

        ValueError where the weights and a cache of the longest texts do not fit a device.
        """
        batch = min(self.batch, len(prompts) * sampling.n)
        longest = max(map(len, prompts), default=0) + sampling.max_new
        length = min(longest, self.config.P)
        d, t = self.mesh.devices.shape
        memory.check_fit(self.config, d, t, self.dtype, batch, length, self.room)
        decoder, weights = self.decoder()
        stops = sampling.stop_ids | self.stop_ids
        sampling = dataclasses.replace(sampling, stop_ids=stops)
        return decoder.generate(weights, prompts, sampling, self.tok, self.batch, names, watch)

    def use_template(self, name: str | None) -> None:
        """Write conversations in a template of this name; None leaves the model's."""
        if name:
            templates.needed(self.tok, name)  # says which token is missing
            self.template = name

    def need_template(self) -> str:
        """Which template conversations are written in, for a reader.

        ValueError where nothing says which: another one than it was trained with would spoil what
        the model says, in silence.
        """
        if self.template is None:
            raise ValueError(
                f"{self.path} does not say how conversations are written (no role tokens, no chat "
                "template): name one with --template koala, chatml or llama3"
            )
        return "the model's own chat template" if self.template == OWN else self.template

    def chat_ids(self, conversation: list[dict]) -> list[int]:
        """Ids of turns {"from", "value"} up to where the assistant begins to speak."""
        self.need_template()
        name = None if self.template == OWN else self.template
        return templates.prompt_ids(conversation, self.tok, name)

    def truncate_shots(
        self, build: Callable[[int], str | list], shots: int, room: int
    ) -> tuple[list, str | list, int, int]:
        """The prompt build(k) with the most shots whose ids are at most `room`.

        -> (ids, prompt, shots used, ids cut off). Without any shot and still too long, its end.
        """
        for k in range(shots, -1, -1):
            prompt = build(k)
            ids = prompt if isinstance(prompt, list) else self.start + self.tok.encode(prompt)
            if len(ids) <= room:
                return ids, prompt, k, 0
        cut = len(ids) - room
        return ids[: len(self.start)] + ids[len(self.start) + cut :], prompt, 0, cut

    def split_tokens(self, prefix: str, text: str) -> tuple[list, int]:
        """(ids of prefix + text, where the text's begin).

        Where the border falls inside a token, that token is the text's.
        """
        before = self.start + self.tok.encode(prefix)
        whole = self.start + self.tok.encode(prefix + text)
        if not before:  # something must come before the first token
            before, whole = [self.tok.bos], [self.tok.bos, *whole]
        return whole, max(shared_length(before, whole), 1)
