"""Settings of the measurement beside the user's own hyperparameters, in every logger that takes some."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Mapping
from typing import Any

OURS = "with"
"""First part of our names: TensorBoard shows the first few by the alphabet, which are to be the user's own."""


class JoinedHyperparameters:
    """Takes the place of a logger's ``log_hyperparams``, and adds settings to whatever is logged, until :meth:`end`.

    TensorBoard shows the first hyperparameters of a run only: those that are written later would not be seen, and those
    that are written before would hide the user's.

    Args:
        logger: The logger.
        settings: Plain values by name.
    """

    def __init__(self, logger: Any, settings: Mapping[str, object]) -> None:
        self.logger, self.settings = logger, settings
        self._are_logged = False
        self._log, self._of_instance = logger.log_hyperparams, "log_hyperparams" in vars(logger)
        logger.log_hyperparams = self
        if isinstance(getattr(logger, "hparams", None), dict):  # of TensorBoardLogger, which writes its file only once
            logger.hparams.update(settings)

    def __call__(self, params: Any = None, *args: Any, **kwargs: Any) -> Any:
        """Log hyperparameters with the settings; what is neither a dict nor a namespace is left as it is."""
        plain = vars(params) if isinstance(params, Namespace) else params
        if plain is None or isinstance(plain, dict):
            params, self._are_logged = {**(plain or {}), **self.settings}, True
        return self._log(params, *args, **kwargs)

    def end(self) -> None:
        """Log the settings alone if nothing else was logged, and give the logger its own method back."""
        if self._of_instance:
            self.logger.log_hyperparams = self._log
        else:
            del self.logger.log_hyperparams
        if not self._are_logged:
            self._log(dict(self.settings))
