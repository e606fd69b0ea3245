"""The mode `view`: a page in the browser on which to try the model."""

from __future__ import annotations

import dataclasses

from nvae_jax.api import Run
from nvae_jax.errors import require
from nvae_jax.evaluation.trained import TrainedModel
from nvae_jax.viewer.page import make_page, serve
from nvae_jax.viewer.shown import Shown


@dataclasses.dataclass(frozen=True)
class ViewOptions:
    """Options of `view`.

    Attributes:
      host: the address to serve at; 0.0.0.0 lets other machines in, without a password
      port: the port to serve at
    """

    host: str = "127.0.0.1"
    port: int = 7860

    def __post_init__(self):
        require("port", self.port, 1 <= self.port < 2**16, "1 to 65535")


def view(model: TrainedModel, options: ViewOptions = ViewOptions()) -> None:
    """Serves a page with samples, reconstructions, interpolations and curves, until Ctrl-C.

    It requires the extra `view`: `pip install 'nvae-jax[view]'`.

    Args:
      model: the model.
      options: where.

    Raises:
      ConfigError: Gradio cannot be imported, or the port is taken.
    """
    serve(make_page(Shown(Run(model))), options.host, options.port)
