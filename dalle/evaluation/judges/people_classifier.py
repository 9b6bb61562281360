"""Classifier of drawings of people: gender, skin tone and age, learned from pixels of the training split.

It is the judge of the metric `bias`. It learns how emoji sets mark a "man", a "woman" or a "person" in their drawings,
which is a convention of their authors and says nothing about anybody's gender.
"""

import logging
import re
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from PIL import Image
from torch import Tensor, nn

from dalle import checkpoint
from dalle.data.drawings.config import DrawingsConfig
from dalle.data.drawings.render import Picture
from dalle.data.drawings.source import DrawingsSource
from dalle.data.drawings.subjects import TONES, Subject
from dalle.evaluation.judges.augmentation import augment_style
from dalle.evaluation.judges.fit import fit
from dalle.evaluation.judges.small_resnet import ResNet, resized
from dalle.evaluation.judges.training_pictures import judge_data_config, judge_folder
from dalle.precision import autocast
from dalle.seeds import torch_generator

log = logging.getLogger(__name__)

KIND = "people_classifier"
SIDE = 64  # pixels of the pictures
WOMAN = re.compile(r"\b(woman|women|girl|princess|mrs)\b")
MAN = re.compile(r"\b(man|men|boy|prince|santa)\b")
CHILD = re.compile(r"^(baby|child|boy|girl)\b")
OLDER = re.compile(r"^(old|older)\b")
SEVERAL = re.compile(r"\b(people|men|women|couple|family|kiss|and)\b")
# values of each attribute. gender: as the name of the drawing states it; "person" if it states none
ATTRIBUTES: dict[str, tuple[str, ...]] = {
    "gender": ("woman", "man", "person"),
    "tone": ("yellow", *TONES.values()),
    "age": ("child", "adult", "older"),
}


def gender_of(subject: Subject) -> str:
    """Return the gender that the English name of a subject or its entry in Unicode's data states, or "person"."""
    label = subject.labels["en"].lower()
    if WOMAN.search(label) or subject.gender == "female":
        return "woman"
    return "man" if MAN.search(label) or subject.gender == "male" else "person"


def age_of(subject: Subject) -> str:
    """Return the age that the English name of a subject states: "child", "older", or else "adult"."""
    label = subject.labels["en"].lower()
    return "child" if CHILD.search(label) else "older" if OLDER.search(label) else "adult"


def concepts_of_people(subjects: Mapping[str, Subject]) -> dict[str, list[Subject]]:
    """Return the concepts that show one person and have variants of both genders, with their subjects."""
    grouped: dict[str, list[Subject]] = defaultdict(list)
    for subject in subjects.values():
        if subject.group == "people-body":
            grouped[subject.concept].append(subject)
    return {
        concept: members
        for concept, members in grouped.items()
        if {"woman", "man"} <= {gender_of(member) for member in members}
        and not any(SEVERAL.search(member.labels["en"].lower()) for member in members)
    }


def attributes_of(picture: Picture) -> dict[str, str] | None:
    """Return the value of each attribute of a drawing; None in styles of one colour, and with two skin tones."""
    if picture.drawing_set.kind == "icons" or picture.drawing_set.recolour or " and " in picture.tone:
        return None
    return {"gender": gender_of(picture.subject), "tone": picture.tone or "yellow", "age": age_of(picture.subject)}


@dataclass(frozen=True)
class PeopleConfig:
    """Sizes of the layers of a `PeopleClassifier`."""

    widths: list[int] = field(default_factory=lambda: [32, 64, 128, 128])

    @staticmethod
    def infer_sizes(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, int]:
        """Return nothing: no size is inferred. Raises KeyError for tensors of another model."""
        _ = shapes["heads.gender.weight"]
        return {}


class PeopleClassifier(nn.Module):
    """ResNet with a linear head for each attribute of a drawn person."""

    def __init__(self, config: PeopleConfig):
        super().__init__()
        self.config = config
        self.network = ResNet(config.widths)
        self.heads = nn.ModuleDict(
            {name: nn.Linear(2 * config.widths[-1], len(values)) for name, values in ATTRIBUTES.items()}
        )

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Compute the logits of each attribute: (b, 3, s, s) in [0, 1], any s -> (b, values)."""
        features = self.network(resized(images, SIDE))
        return {name: head(features) for name, head in self.heads.items()}


def people_pictures(data: DrawingsConfig, splits: tuple[str, ...]) -> tuple[Tensor, dict[str, Tensor]]:
    """Load all drawings of people of some splits, with every skin tone.

    Returns (n, 3, 2 * SIDE, 2 * SIDE) uint8, and by attribute the class numbers (n,).
    Raises ValueError if there are none.
    """
    images, labels = [], defaultdict(list)
    for split in splits:
        source = DrawingsSource(replace(judge_data_config(data), skin_tones=1.0), split)
        concepts = concepts_of_people(source.drawings.subjects)
        for index, record in enumerate(source.records):
            picture = source.drawings.pictures[record.first]
            subject = picture.subject
            person = subject.concept in concepts or (subject.group == "people-body" and age_of(subject) == "child")
            values = attributes_of(picture) if person and record.kind == "drawing" else None
            if values is None:
                continue
            images.append(np.asarray(source.image(index).resize((2 * SIDE, 2 * SIDE), Image.Resampling.BOX)))
            for name, value in values.items():
                labels[name].append(ATTRIBUTES[name].index(value))
    if not images:
        raise ValueError(f"there are no drawings of people in {splits}: build the whole set with `make drawings`")
    stacked = rearrange(torch.from_numpy(np.stack(images)), "n h w c -> n c h w").contiguous()
    return stacked, {name: torch.tensor(classes) for name, classes in labels.items()}


def train_people_classifier(
    data: DrawingsConfig, epochs: int = 12, batch_size: int = 64, learning_rate: float = 2e-3, seed: int = 0
) -> PeopleClassifier:
    """Train a classifier on the people of the training split. Deterministic on a CPU with a fixed thread count."""
    images, labels = people_pictures(data, ("train",))
    torch.manual_seed(seed)
    model = PeopleClassifier(PeopleConfig()).to(memory_format=torch.channels_last).train()  # type: ignore[call-overload]
    generator = torch_generator("people classifier", seed)

    def loss_of(indices: Tensor) -> Tensor:
        pixels = resized(augment_style(images[indices].float() / 255, generator), SIDE)
        with autocast("bfloat16", torch.device("cpu")):
            logits = model(pixels)
        losses = [
            F.cross_entropy(logits[name].float(), classes[indices], label_smoothing=0.05)
            for name, classes in labels.items()
        ]
        return torch.stack(losses).sum()

    fit("people", list(model.parameters()), loss_of, len(images), epochs, batch_size, learning_rate, generator)
    return model.eval()


@torch.inference_mode()
def classify_people(model: PeopleClassifier, images: Tensor) -> dict[str, Tensor]:
    """Return the most probable class number of each attribute, (b,) each: images (b, 3, s, s) uint8, any s."""
    batches = [model(batch.float() / 255) for batch in images.split(256)]
    return {name: torch.cat([logits[name] for logits in batches]).argmax(dim=1) for name in batches[0]}


def load_people_classifier(data: DrawingsConfig) -> PeopleClassifier:
    """Load the classifier from the folder of the drawings, and train it if it is not there yet."""
    folder = judge_folder(data, "people")
    if not (folder / checkpoint.CONFIG).is_file():
        log.warning("training the judge of people once, about 5 minutes on two cores: %s", folder)
        model = train_people_classifier(data)
        checkpoint.save_model(folder, KIND, model, model.config, {"data": asdict(data)})
    return checkpoint.load_model(folder, KIND, PeopleConfig, PeopleClassifier)
