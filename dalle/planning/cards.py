"""Memory and bandwidths of accelerators from the vendors' data sheets, and their peak rates, for plans."""

from dataclasses import dataclass

from dalle.training.monitor.throughput import peak_of_gpu

GIGABYTE = 1e9


@dataclass(frozen=True)
class Card:
    """Memory and bandwidths of one accelerator, in bytes and seconds."""

    name: str  # as torch.cuda.get_device_name() has it, shortened
    memory: float  # bytes
    link: float  # bytes per second to other cards of the same node, in one direction
    network: float  # bytes per second to cards of other nodes, in one direction
    per_node: int = 8  # cards per node, usually

    @property
    def has_bfloat16(self) -> bool:
        """True if it has bfloat16, and with it TF32."""
        return peak_of_gpu(self.name, "bfloat16") is not None

    def flops(self, precision: str) -> float:
        """Return the peak rate of matrix products in FLOP/s, as MFU uses it; that of float16 if it has no bfloat16.

        precision: a name in `FORMATS`, or tf32.
        """
        rate = peak_of_gpu(self.name, precision) or peak_of_gpu(self.name, "float16")
        assert rate is not None, f"{self.name} is not among the GPUs of dalle.training.monitor.throughput"
        return rate


def _card(name: str, gigabytes: float, link: float, network: float) -> Card:
    return Card(name, gigabytes * GIGABYTE, link * GIGABYTE, network * GIGABYTE)


# from the vendor's data sheets: memory, NVLink in one direction; the usual network of such a node
CARDS = {
    "v100": _card("V100 16 GB", 16, 150, 1.6),  # the paper's; 100 Gbit/s shared by eight cards
    "a100": _card("A100 80 GB", 80, 300, 25),
    "h100": _card("H100 80 GB", 80, 450, 50),
    "h200": _card("H200 141 GB", 141, 450, 50),
    "b200": _card("B200 180 GB", 180, 900, 50),
}


def find_card(name: str) -> Card:
    """Return the card with this name. Raises ValueError for an unknown one."""
    if name not in CARDS:
        raise ValueError(f"card={name} is unknown; choose one of {', '.join(CARDS)}")
    return CARDS[name]
