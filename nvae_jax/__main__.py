"""The console command `nvae-jax`, and `python -m nvae_jax`: what `nvae_jax.main` does."""

import runpy


def run() -> None:
    """Runs `nvae_jax.main` as a program, so that it comes before all that is slow to import."""
    runpy.run_module("nvae_jax.main", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    run()
