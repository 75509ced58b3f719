"""The whole study: adapt, harvest, fit over rank × dictionary size, compare, report. Without words it runs the demo."""

from deltasae_ray.sweep.main import main

if __name__ == "__main__":
    main("sweep", __doc__)
