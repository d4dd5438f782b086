"""A `Progress` that remembers what it heard."""


class Recording:
    """`lines` that were said, `steps` as [description, unit, total, number done], and the `details` of the last."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.steps: list[list[object]] = []
        self.details: dict[str, object] = {}

    def start(self, description: str, total: int | None, unit: str) -> None:
        self.steps.append([description, unit, total, 0])

    def advance(self, count: int = 1, **details: object) -> None:
        self.steps[-1][3] += count  # type: ignore[operator]
        self.details = details

    def say(self, line: str) -> None:
        self.lines.append(line)
