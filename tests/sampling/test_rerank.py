import torch
from PIL import Image

from dalle.sampling.rerank import rank


class Brightness:
    """Scores how bright a picture is, whatever the caption."""

    def score(self, images: list[Image.Image], captions: list[str]) -> torch.Tensor:
        scores = torch.tensor([image.convert("L").getpixel((0, 0)) for image in images])
        return scores[:, None].repeat(1, len(captions))


def test_the_best_comes_first_with_its_score():
    images = [Image.new("RGB", (2, 2), (level,) * 3) for level in (10, 200, 90)]
    assert rank(images, "anything", Brightness()) == ([1, 2, 0], [200, 90, 10])


def test_equal_scores_keep_their_order():
    images = [Image.new("RGB", (2, 2), (level,) * 3) for level in (7, 9, 7, 9, 7)]
    order, _ = rank(images, "anything", Brightness())
    assert order == [1, 3, 0, 2, 4]
