"""Validation of the user's arguments about the twins."""

from __future__ import annotations

from lightning_info import validation


def twin_arguments(
    owner: str,
    index: int | None,
    replacement: int | None,
    beta: float,
    num_twins: int,
    trust: str | list[str] | None,
) -> list[str]:
    """Refuse invalid arguments of :class:`~.StabilityCallback`.

    Returns:
        The names in ``trust``.

    Raises:
        ValueError: There are samples below 0, several twins of one sample, or values that are not numbers or names.
    """
    for name, sample in (("index", index), ("replacement", replacement)):
        if sample is not None:
            validation.integer(owner, name, sample, 0)
            if sample < 0:
                raise ValueError(f"{owner}: {name}={sample}; samples are numbered from 0, for example {name}=0")
    validation.positive_number(owner, "beta", beta, 1.0)
    validation.positive_integer(owner, "num_twins", num_twins, 4)
    if num_twins > 1 and index is not None and replacement is not None:
        raise ValueError(
            f"{owner}: num_twins={num_twins} with index={index} and replacement={replacement} are twins of the "
            f"same sample; leave out one of the two, which is then drawn for each twin"
        )
    trusted = [trust] if isinstance(trust, str) else list(trust or ())
    if not all(isinstance(name, str) for name in trusted):
        raise ValueError(
            f"{owner}: trust={trust!r}; give names of classes of callbacks, for example trust=['MyLogger']"
        )
    return trusted
