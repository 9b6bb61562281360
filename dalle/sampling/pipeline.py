"""Text-to-image pipeline: tokenizer, transformer, CLIP reranking (Sec. 2.6) and decoding of the kept images."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from dalle import hub
from dalle.distributed import parse_device
from dalle.models.decoder.model import DiffusionDecoder
from dalle.models.dvae.model import DiscreteVAE
from dalle.models.transformer.model import Transformer
from dalle.sampling import decode, inpainting
from dalle.sampling.canvas import Canvas, EncodedImage, encode_image
from dalle.sampling.captions import encode_captions, unknown_words
from dalle.sampling.components import check_components, find_components, load_components
from dalle.sampling.decoding_choice import ChosenConfig, choose_decoding
from dalle.sampling.image_decoder import ImageDecoder, decode_images
from dalle.sampling.parallel_decode import DecodingCount
from dalle.sampling.progress_bar import SamplingProgress
from dalle.sampling.rerank import Reranker, Scorer, build_reranker, reference_captions
from dalle.sampling.result_stream import stream_results
from dalle.sampling.results import Result, SelectBest
from dalle.sampling.sampling_config import Config, DecodingConfig, RerankConfig, SamplingConfig, with_overrides
from dalle.sampling.sampling_defaults import SamplingDefaults
from dalle.tokenizer import CaptionTokenizer

DEFAULTS = SamplingConfig()


class DALLE:
    """Text-to-image pipeline. Build it from checkpoints with `load`, then call `generate`.

    Raises:
        ValueError: components that do not fit each other.
    """

    def __init__(
        self,
        dvae: DiscreteVAE,
        transformer: Transformer,
        tokenizer: CaptionTokenizer,
        clip: Scorer | None = None,
        decoder: DiffusionDecoder | None = None,
        defaults: SamplingDefaults | None = None,
        words: Sequence[str] = (),
        precision: torch.dtype = torch.float32,
    ):
        """Join components that were trained together. Models are put in eval mode: dropout would change the samples.

        clip: scores candidates for reranking; None: no reranking by CLIP.
        decoder: diffusion decoder for the images that are kept; None: the dVAE's decoder.
        defaults: sampling settings where a config sets none; None: the paper's.
        words: words of the training captions; empty if the checkpoint does not list them.
        precision: number format of the diffusion decoder's convolutions and, on a CPU, of the transformer's linear
            layers; on a GPU these compute in the format of their weights.
        """
        check_components(dvae, transformer, tokenizer, decoder)
        for model in (dvae, transformer, clip, decoder):
            if isinstance(model, nn.Module):
                model.eval()
        self.dvae = dvae
        self.transformer = transformer
        self.tokenizer = tokenizer
        self.clip = clip
        self.decoder = decoder
        self.defaults = defaults or SamplingDefaults()
        self.words = frozenset(words)
        self.precision = precision
        self.folders: dict[str, Path] = {}  # of the components' checkpoints, if they were loaded

    @classmethod
    def from_pretrained(cls, name: str | Path, revision: str | None = None, **options: Any) -> "DALLE":
        """Load from a folder, by the name of a checkpoint in the package, or from user/name on the Hugging Face Hub.

        revision: branch, tag or commit on the hub. options: of `load`. `dalle.push_to_hub` uploads.

        Raises:
            CheckpointError: as `load`; there is no such model or revision, or the hub cannot be reached.
        """
        return cls.load(hub.local_folder(name, revision), **options)

    @classmethod
    def load(
        cls,
        folder: str | Path,
        device: str | torch.device = "cpu",
        dvae: str | Path | None = None,
        clip: str | Path | None = None,
        precision: str = "auto",
        decoder: str | Path | None = None,
    ) -> "DALLE":
        """Load from a folder with dvae/, transformer/ and optionally clip/, or from a transformer checkpoint.

        A transformer checkpoint records the digest and the path of the dVAE that it was trained with; `dvae`
        overrides the path, and `clip` is the folder of a CLIP. `decoder` is the folder of a diffusion decoder, which
        decodes the kept images in place of the dVAE's decoder. `precision` of the transformer and of the diffusion
        decoder is "float32", "bfloat16", or "auto": bfloat16 on a GPU that computes in it.

        Raises:
            CheckpointError: a component is missing, unreadable, or not the one the transformer or the
                decoder was trained with.
            ValueError: an unknown precision, or a device that is neither the CPU nor a GPU of this machine.
        """
        components = find_components(folder, dvae, clip, decoder)
        dalle = cls(*load_components(components, parse_device(device), precision))
        dalle.folders = components
        return dalle

    def push_to_hub(self, repository: str, **options: Any) -> str:
        """Upload the checkpoints that this was loaded from to user/name on the Hugging Face Hub. Returns the address.

        options: of `dalle.push_to_hub`, such as `private` and `metrics`. A diffusion decoder is not uploaded.

        Raises:
            ValueError: this was built from models, not loaded.
            CheckpointError: a checkpoint is no longer there, or the hub cannot be reached.
        """
        from dalle.sampling.export import push_to_hub  # imports the data sources, which sampling does not need

        if not self.folders:
            raise ValueError("only a DALLE that was loaded from checkpoints can be uploaded: save its models first")
        folders: dict[str, Any] = {kind: str(self.folders[kind]) for kind in ("dvae", "clip") if kind in self.folders}
        return push_to_hub(self.folders["transformer"], repository, **(folders | options))

    def generate(
        self,
        caption: str,
        config: SamplingConfig = DEFAULTS,
        *,
        canvas: Canvas | Tensor | None = None,
        candidate_offset: int = 0,
        progress: bool = True,
        **settings: Any,
    ) -> Result:
        """Sample `candidates` images of `caption` and return the best `keep` by `rerank`.

        The paper samples 512 at temperature 1 without guidance (Sec. 2.6). Candidate i of a seed has the same
        tokens whatever `candidates`, `keep` and `batch_size` are (in 16 bits up to rounding, which depends on the
        batch), and the same pixels up to rounding, as the dVAE decodes several images at a time.

        settings: fields of `SamplingConfig` by name, such as candidates=64, keep=8, seed=1; they override `config`.
        canvas: tokens to keep and masked tokens to sample, as `dalle.sampling.edits` builds; None: sample all tokens.
        candidate_offset: number of the first candidate.
        progress: show a progress bar, on a terminal or in a notebook, for what takes over two seconds.

        Raises:
            TypeError: an unknown setting; the message suggests the nearest name. Or a caption that is not a text.
            ValueError: an empty or too long caption, a setting out of its range, or guidance with a transformer that
                was trained without empty captions.
        """
        config = with_overrides(config, settings, other_names=("canvas", "candidate_offset", "progress"))
        (result,) = self.stream([caption], config, canvas=canvas, candidate_offset=candidate_offset, progress=progress)
        return result

    def generate_many(
        self,
        captions: Sequence[str],
        config: SamplingConfig = DEFAULTS,
        *,
        canvas: Canvas | Tensor | None = None,
        candidate_offset: int | Sequence[int] = 0,
        truncate: bool = False,
        progress: bool = True,
        **settings: Any,
    ) -> list[Result]:
        """Call `generate` for several captions, which share batches. See `stream` for the options."""
        config = with_overrides(config, settings, other_names=("canvas", "candidate_offset", "truncate", "progress"))
        return list(
            self.stream(
                captions, config, canvas=canvas, candidate_offset=candidate_offset, truncate=truncate, progress=progress
            )
        )

    def stream(
        self,
        captions: Sequence[str],
        config: SamplingConfig | ChosenConfig = DEFAULTS,
        *,
        canvas: Canvas | Tensor | None = None,
        candidate_offset: int | Sequence[int] = 0,
        truncate: bool = False,
        progress: bool = True,
        stop: Callable[[], bool] = lambda: False,
        on_tokens: decode.OnTokens | None = None,
        count: DecodingCount | None = None,
    ) -> Iterator[Result]:
        """Yield the result of each caption as soon as its candidates are sampled, without keeping earlier results.

        config: the settings, or what `choose_decoding` returned for as many captions and for the same canvas.
        candidate_offset: number of the first candidate, the same for all captions or one for each.
        truncate: cut a caption that is too long, as training does; otherwise raise `ValueError`.
        stop: called after each token. Once it returns True, sampling stops; the finished candidates of the current
            caption, if any, are ranked and yielded last.
        on_tokens: shows the images while they are sampled, see `dalle.sampling.decode.OnTokens`.
        count: the images, tokens and passes of decoding are added to it.
        """
        if not captions:
            return
        if isinstance(config, ChosenConfig):
            chosen = config
        else:
            chosen = self.choose_decoding(len(captions), self.resolve(config, canvas))
        config = chosen.config
        ids = self.tokenize(captions, truncate)
        select_best = SelectBest(self.dvae, config, self.reranker(ids, config), canvas, self.image_decoder(config))
        offsets = decode.expand_offset(candidate_offset, len(captions))
        with SamplingProgress(len(captions) * config.candidates, progress, stop) as advance:
            batches = self.sample_batches(
                ids,
                config,
                canvas,
                candidate_offset=offsets,
                recompute_kv=chosen.choice.recompute_kv,
                on_progress=advance,
                on_tokens=on_tokens,
                count=count,
            )
            yield from stream_results(batches, captions, ids, offsets, select_best)

    def resolve(self, config: Config, canvas: Canvas | Tensor | None = None) -> Config:
        """Return `config` with the checkpoint's guidance, temperature and score for ranking where it sets none.

        `keep` is the number of images kept, if it was None. `rerank` stays None if nothing can rank: there is no CLIP,
        and the checkpoint names no other score.

        The first step of sampling, and of whatever prints or records settings. Resolving again changes nothing.

        canvas: the canvas that images are sampled on, if any.

        Raises:
            ValueError: settings that do not fit the models, see `SamplingDefaults.resolve`, or the size of the canvas.
        """
        grid = self.transformer.sequence.grid
        tokens = canvas.tokens if isinstance(canvas, Canvas) else canvas
        is_larger = tokens is not None and tokens.shape[-2:] != (grid, grid)
        config = self.defaults.resolve(config, self.clip is not None, is_larger)
        if isinstance(canvas, Canvas):
            canvas.require_model_grid(grid, config.options_on_model_grid)
        return config

    def choose_decoding(self, captions: int, config: Config) -> ChosenConfig[Config]:
        """Choose decoding method, window and batch size for that many captions and a resolved config.

        `stream` takes the result in place of a config, and then chooses nothing itself.

        Raises:
            ValueError: one image does not fit into memory.
        """
        return choose_decoding(self.transformer, captions, config, self.precision)

    def tokenize(self, captions: Sequence[str], truncate: bool = False) -> Tensor:
        """Encode captions as the transformer's text input: (captions, T) int64.

        Raises:
            TypeError: one text in place of a list of them, or a caption that is not a text.
            ValueError: a caption that is empty, or too long unless `truncate`.
        """
        return encode_captions(captions, self.tokenizer, self.transformer.sequence, truncate)

    def unknown_words(self, captions: Sequence[str]) -> list[str]:
        """Return the words that no training caption has, sorted; empty if the checkpoint lists no training words."""
        return unknown_words(captions, self.words)

    def decode_images(self, tokens: Tensor) -> list[Image.Image]:
        """Decode image tokens with the dVAE's decoder: (b, h, w) int64 -> b images."""
        return decode_images(self.dvae, tokens)

    def image_decoder(self, config: DecodingConfig = DEFAULTS) -> ImageDecoder | None:
        """Return the diffusion decoder with the settings of `config`; None if none is loaded."""
        if self.decoder is None:
            return None
        return ImageDecoder(self.decoder, config, self.precision)

    def encode_image(self, image: Image.Image) -> EncodedImage:
        """Crop, scale and encode an image of any size and mode for `dalle.sampling.edits`."""
        return encode_image(image, self.dvae, self.transformer.sequence.grid)

    def reranker(self, captions: Tensor, config: RerankConfig) -> Reranker | None:
        """Build the reranker of (captions, T) for a resolved config. Returns None if it cannot rank.

        Raises:
            ValueError: caption_likelihood has no caption to compare with.
        """
        references = None
        if "caption_likelihood" in config.score_weights:
            reference_ids = self.tokenize(config.rerank_references, truncate=True) if config.rerank_references else None
            references = reference_captions(
                self.transformer.sequence, captions, reference_ids, self.defaults.caption_dropout > 0
            )
        return build_reranker(config, self.transformer, self.clip, references)

    def sample_batches(
        self, ids: Tensor, config: SamplingConfig, canvas: Canvas | Tensor | None = None, **options: Any
    ) -> Iterator[decode.SampledBatch]:
        """Sample image tokens for (captions, T) ids, one batch at a time, without ranking or decoding them.

        config: a resolved one.
        options: of `dalle.sampling.decode.sample_batches`, such as candidate_offset, on_progress and on_tokens.
        """
        options.setdefault("precision", self.precision)
        if isinstance(canvas, Canvas):
            return inpainting.inpaint_batches(
                self.transformer, ids, config.candidates, config, canvas=canvas, **options
            )
        return decode.sample_batches(self.transformer, ids, config.candidates, config, canvas=canvas, **options)
