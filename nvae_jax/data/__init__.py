"""Image datasets: random-access sources, the Grain loader, device-side transforms, baselines."""
