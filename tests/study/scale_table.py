"""The table of docs/scale.md.

python -m tests.study.scale_table      # prints it
"""

import sys

from deltasae_ray.study.prices import DOLLARS_PER_GPU_HOUR
from deltasae_ray.study.scale import Scale, costs

SIZES = (
    (10**6, 1, 1), (10**6, 4, 8), (10**8, 4, 8), (10**8, 100, 64), (10**9, 4, 64), (10**9, 100, 256),
    (10**9, 1000, 512), (10**10, 4, 256), (10**10, 4, 512), (10**10, 100, 512),
)  # fmt: skip
"""Tokens, adapters, gangs."""


def rows() -> list[Scale]:
    machine = 4 * DOLLARS_PER_GPU_HOUR["l40s"]
    return [
        Scale(tokens, adapters, gangs=gangs, dollars_per_hour=machine) for tokens, adapters, gangs in SIZES
    ]


def table() -> str:
    lines = [
        "| tokens | adapters | gangs | gangs' hours | driver's hours | head, GB | most of it | requests | dollars | limit |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for of in rows():
        found = costs(of)
        driver = sum(s for part, s in found.seconds.items() if part != "gangs") / 3600
        most = max(found.head_bytes, key=lambda part: found.head_bytes[part])
        lines.append(
            f"| {of.tokens:,} | {of.adapters:,} | {of.gangs} | {found.seconds['gangs'] / 3600:,.1f} | {driver:,.1f} |"
            f" {found.memory / 1e9:,.1f} | {most} | {found.all_requests:,.0f} | {found.dollars:,.0f} | {found.limit} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    sys.stdout.write(f"{table()}\n")
