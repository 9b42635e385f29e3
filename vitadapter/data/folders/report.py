"""What a check has found, as tables, warnings and refusals."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from tabulate import tabulate

from vitadapter.data.dataset_source import counted, first_few

__all__ = ["ROLES", "CheckReport"]

ROLES = ("train", "test")
# How often the most frequent class may occur for each object of the rarest.
_BALANCED = 100


@dataclass
class CheckReport:
    """What a check has found.

    Attributes:
        format: of the data set, such as "YOLO".
        counts: of each line of the table, by role.
        class_names: in the order of the class numbers.
        unit: what is counted of classes.
        classes: number of objects, segments or pixels of each class, by role.
        class_images: number of images that show a class, by role.
        warnings: what may be wrong.
        refusals: what makes training or evaluation wrong.
        proposal: size of images for the `finetune` experiments, and why; "" for none.
    """

    format: str
    counts: dict[str, dict[str, int]] = field(default_factory=dict)
    class_names: Sequence[str] = ()
    unit: str = "objects"
    classes: dict[str, Counter[int]] = field(default_factory=dict)
    class_images: dict[str, Counter[int]] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    refusals: list[str] = field(default_factory=list)
    proposal: str = ""

    def set(self, role: str, **counts: int) -> None:
        """Fills places of the table; a keyword is the name of a line, with "_" for spaces."""
        for line, count in counts.items():
            self.counts.setdefault(line.replace("_", " "), {})[role] = count

    def count_classes(self, role: str, images: Iterable[Iterable[int]]) -> None:
        """Counts classes.

        Args:
            role: one of `ROLES`.
            images: of each image the classes of its objects.
        """
        self.classes[role], self.class_images[role] = Counter(), Counter()
        for classes in images:
            found = Counter(classes)
            self.classes[role].update(found)
            self.class_images[role].update(found.keys())

    def check_balance(self) -> None:
        """Tells of classes that cannot be learned, or hardly."""
        counts = [self.classes["train"][number] for number in range(len(self.class_names))]
        absent = [name for name, n in zip(self.class_names, counts, strict=True) if not n]
        rarest = min((count for count in counts if count), default=0)
        if not rarest:
            self.refusals.append(f"dataset.train has no {self.unit}")
            return
        if absent:
            self.warnings.append(
                f"training lacks {len(absent)} of {counted(len(counts), 'class')} "
                f"({first_few(absent, 10)})"
            )
        if max(counts) > _BALANCED * rarest:
            self.warnings.append(
                f"the most frequent class has {max(counts)} {self.unit} in training, the rarest "
                f"{rarest} ({self.class_names[counts.index(rarest)]})"
            )

    def text(self) -> str:
        """Tables, warnings and refusals."""
        lines = [[line, *map(found.get, ROLES)] for line, found in self.counts.items()]
        heads = [f"{role} {what}" for role in ROLES for what in (self.unit, "images")]
        columns = [found[role] for role in ROLES for found in (self.classes, self.class_images)]
        rows = [[name, *(c[n] for c in columns)] for n, name in enumerate(self.class_names)]
        return "\n\n".join(
            [
                f"format: {self.format}",
                tabulate(lines, ["", *ROLES], tablefmt="github", missingval="-"),
                tabulate(rows, ["class", *heads], tablefmt="github"),
                *(f"warning: {text}" for text in self.warnings),
                *(f"refused: {text}" for text in self.refusals),
                *([self.proposal] if self.proposal else []),
            ]
        )
