"""The page, made with Gradio. It is served by this machine, and needs no other."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from nvae_jax.errors import ConfigError, importing
from nvae_jax.viewer.shown import LARGEST_FILE, MOST_IMAGES, MOST_STEPS, Shown

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

    def picture(caption: str) -> Any:
        """A picture below its caption, which as a label would lie on the picture."""
        gr.Markdown(caption)
        buttons = ["download", "fullscreen"]
        return gr.Image(show_label=False, format="png", interactive=False, buttons=buttons)

    def upload(label: str, name: str) -> Any:
        return gr.File(label=label, type="filepath", file_types=["image"], elem_id=name)

    def whole(label: str, value: int = 0) -> Any:
        return gr.Number(value, label=label, precision=0, minimum=0, maximum=2**32 - 1)

    def draw(number: int, seed: int, *temperatures: float) -> Any:
        return move([seed] * len(temperatures), number, *temperatures)

    def move(seeds: list[int], number: int, *temperatures: float) -> Any:
        return shown.samples(number, seeds, temperatures), seeds

    def redraw(seeds: list[int], number: int, scale: int, seed: int, *temperatures: float) -> Any:
        seeds = [*seeds[:scale], seed, *seeds[scale + 1 :]]
        return *move(seeds, number, *temperatures), seed + 1

    scales = [f"scale {s}, {h}x{w}" for s, (h, w) in enumerate(shown.scales)]
    scales[0] += ", the coarsest"
    with gr.Blocks(title="nvae_jax", analytics_enabled=False) as page:
        gr.Markdown(f"# {shown.run.trained.workdir.path.name}\n\n`{shown.run!r}`")
        with gr.Tab("Sample"), gr.Row():
            seeds = gr.State([0] * len(scales))  # of the scales; of each person's own
            with gr.Column():
                temperatures = [
                    gr.Slider(0, 1.5, 0.8, step=0.05, label=f"temperature of {scale}")
                    for scale in scales
                ]
                with gr.Row():
                    seed = whole("seed")
                    number = gr.Slider(1, MOST_IMAGES, 16, step=1, label="images")
                others = gr.Button("Draw others", variant="primary")
                with gr.Row():
                    choices = [(scale, s) for s, scale in enumerate(scales)]
                    scale = gr.Dropdown(choices, value=len(scales) - 1, label="one scale")
                    again = whole("its next seed", 1)
                anew = gr.Button("Draw this scale anew, keep the others")
            with gr.Column():
                samples = picture("Samples")
            # What somebody changes is shown at once, when a slider stands still.
            latest: dict[str, Any] = {"trigger_mode": "always_last"}
            gr.on(
                [page.load, seed.change],
                told(draw),
                [number, seed, *temperatures],
                [samples, seeds],
                api_name="draw",
                **latest,
            )
            gr.on(
                [slider.change for slider in (number, *temperatures)],
                told(move),
                [seeds, number, *temperatures],
                [samples, seeds],
                api_name="move",
                **latest,
            )
            others.click(lambda seed: seed + 1, seed, seed, api_visibility="private")
            anew.click(
                told(redraw),
                [seeds, number, scale, again, *temperatures],
                [samples, seeds, again],
                api_name="redraw",
            )
        with gr.Tab("Reconstruct"):
            image, depth_seed = upload("an image", "image"), whole("seed")
            by_depth = picture("The image; then what comes of no scale of it, the coarsest, … all")
            gr.on(
                [image.upload, depth_seed.change],
                told(shown.by_depth),
                [image, depth_seed],
                [by_depth],
                api_name="reconstruct",
            )
        with gr.Tab("Interpolate"):
            with gr.Row():
                first, last = upload("from", "first"), upload("to", "last")
            steps = gr.Slider(2, MOST_STEPS, 9, step=1, label="images")
            go, path = gr.Button("Interpolate", variant="primary"), picture("The path")
            go.click(told(shown.between), [first, last, steps], [path], api_name="interpolate")
        with gr.Tab("Training"):
            curves = picture("The run as it is now")
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
