"""Published figures of accelerators, for plans."""

from dataclasses import dataclass

GIGABYTE = 1e9


@dataclass(frozen=True)
class Card:
    """Memory, matmul rate and bandwidths of one accelerator, in bytes and seconds."""

    name: str
    memory: float  # bytes
    flops: float  # dense products per second in the half-precision format of its matrix units
    link: float  # bytes per second to other cards of the same node, in one direction
    network: float  # bytes per second to cards of other nodes, in one direction
    per_node: int = 8  # cards per node, usually


def _card(name: str, gigabytes: float, teraflops: float, link: float, network: float) -> Card:
    return Card(name, gigabytes * GIGABYTE, teraflops * 1e12, link * GIGABYTE, network * GIGABYTE)


# dense rates without sparsity, from the vendor's data sheets; NVLink per direction; the usual network of such a node
CARDS = {
    "v100": _card("NVIDIA V100 16 GB", 16, 125, 150, 1.6),  # the paper's; 100 Gbit/s shared by eight cards
    "a100": _card("NVIDIA A100 80 GB", 80, 312, 300, 25),
    "h100": _card("NVIDIA H100 80 GB", 80, 989, 450, 50),
    "h200": _card("NVIDIA H200 141 GB", 141, 989, 450, 50),
    "b200": _card("NVIDIA B200 180 GB", 180, 2250, 900, 50),
}


def find_card(name: str) -> Card:
    """Return the card with this name. Raises ValueError for an unknown one."""
    if name not in CARDS:
        raise ValueError(f"card={name} is unknown; choose one of {', '.join(CARDS)}")
    return CARDS[name]
