"""The page, made with Gradio. It is served by this machine, and needs no other."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from nvae_jax.errors import ConfigError, importing
from nvae_jax.viewer.shown import LARGEST_FILE, Shown

_REFRESH = 10.0  # seconds between two looks at the curves


def make_page(shown: Shown) -> Any:
    """The page of a run, a `gradio.Blocks`.

    Raises:
      ConfigError: Gradio cannot be imported.
    """
    with importing("gradio", "--mode view"):
        import gradio as gr

    def told(function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, whose refusals the page shows."""

        @functools.wraps(function)
        def call(*arguments: Any) -> Any:
            try:
                return function(*arguments)
            except (ConfigError, FloatingPointError) as error:
                raise gr.Error(str(error)) from error

        return call

    def picture(label: str) -> Any:
        return gr.Image(label=label, format="png", interactive=False)

    def upload(label: str) -> Any:
        return gr.File(label=label, type="filepath")

    def sample(number: int, seed: int, *temperatures: float) -> Any:
        return shown.sample(number, seed, temperatures)

    def resample(noise: Any, scale: int, seed: int, *temperatures: float) -> Any:
        if noise is None:
            raise ConfigError("there are no samples yet; allowed: to draw some first")
        return shown.resample(noise, scale, seed, temperatures)

    with gr.Blocks(title="nvae_jax", analytics_enabled=False) as page:
        gr.Markdown(f"# {shown.run.trained.workdir.path.name}\n\n`{shown.run!r}`")
        with gr.Tab("Sample"):
            noise = gr.State(None)  # of each person's own
            with gr.Row():
                with gr.Column(scale=1):
                    temperatures = [
                        gr.Slider(0, 1.5, 0.8, step=0.05, label=f"temperature of scale {scale}")
                        for scale in range(shown.scales)
                    ]
                    seed = gr.Number(0, label="seed", precision=0, minimum=0, maximum=2**32 - 1)
                    number = gr.Slider(1, 64, 16, step=1, label="images")
                    draw = gr.Button("Draw", variant="primary")
                    choices = [(f"{s}", s) for s in range(shown.scales)]
                    scale = gr.Dropdown(choices, value=shown.scales - 1, label="scale, 0: coarsest")
                    again = gr.Number(1, label="seed of the scale", precision=0, minimum=0)
                    redraw = gr.Button("Draw this scale anew, keep the others")
                samples = picture("samples")
            # Moving a slider draws, once it stands still.
            gr.on(
                [draw.click, page.load, seed.change, *(slider.change for slider in temperatures)],
                told(sample),
                [number, seed, *temperatures],
                [samples, noise],
                api_name="sample",
                trigger_mode="always_last",
            )
            gr.on(
                [redraw.click],
                told(resample),
                [noise, scale, again, *temperatures],
                [samples, noise],
                api_name="resample",
            )
        with gr.Tab("Reconstruct"):
            image, depth_seed = upload("an image"), gr.Number(0, label="seed", precision=0)
            by_depth = picture("the image; from no scale of it, the coarsest, … to all")
            gr.on(
                [image.upload, depth_seed.change],
                told(shown.by_depth),
                [image, depth_seed],
                [by_depth],
                api_name="reconstruct",
            )
        with gr.Tab("Interpolate"):
            with gr.Row():
                first, last = upload("from"), upload("to")
            steps = gr.Slider(2, 16, 9, step=1, label="images")
            go, path = gr.Button("Interpolate", variant="primary"), picture("the path")
            gr.on(
                [go.click],
                told(shown.between),
                [first, last, steps],
                [path],
                api_name="interpolate",
            )
        with gr.Tab("Training"):
            curves = picture("the run as it is now")
            gr.on(
                [page.load, gr.Timer(_REFRESH).tick],
                told(shown.curves),
                None,
                [curves],
                api_name="curves",
                show_progress="hidden",
            )
    return page


def serve(page: Any, host: str, port: int, wait: bool = True) -> str:
    """Serves a page, until the process is interrupted if it is to wait; returns its address.

    Raises:
      ConfigError: the port is taken.
    """
    import gradio as gr

    try:
        _, address, _ = page.queue(max_size=32).launch(
            server_name=host,
            server_port=port,
            share=False,
            prevent_thread_lock=True,
            max_file_size=LARGEST_FILE,
            show_error=True,
            quiet=True,
            ssr_mode=False,
            footer_links=[],
            # The reader's own fonts: others would be fetched.
            theme=gr.themes.Default(font=["sans-serif"], font_mono=["monospace"]),
        )
    except OSError as error:
        allowed = "a free one, by --port"
        raise ConfigError(f"--port is {port}, which is not free; allowed: {allowed}") from error
    if wait:
        print(f"{address} shows the run; Ctrl-C ends it", flush=True)
        page.block_thread()
    return str(address)
