"""The whole study: adapt, harvest, fit over rank × dictionary size, compare, report. Without words it runs
the demo."""

from pathlib import Path

from deltasae_ray.study.main import main

DEMO = Path(__file__).parent / "configs" / "demo.yaml"

if __name__ == "__main__":
    main("sweep", __doc__, without_words=[f"config={DEMO}"])
