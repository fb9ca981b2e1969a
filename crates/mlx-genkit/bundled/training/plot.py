"""Draws the loss curve: `python plot.py loss.csv ../loss.svg`."""

import csv
import sys

WIDTH, HEIGHT, LEFT, BOTTOM, TOP, RIGHT = 720, 360, 60, 50, 30, 20


def main(source, target):
    rows = list(csv.DictReader(open(source, encoding="utf-8")))
    train = [(int(r["tokens"]), float(r["train_loss"])) for r in rows]
    held = [(int(r["tokens"]), float(r["held_out_loss"])) for r in rows if r["held_out_loss"]]
    most, top = train[-1][0], 4.0

    def place(point):
        tokens, loss = point
        x = LEFT + (WIDTH - LEFT - RIGHT) * tokens / most
        y = HEIGHT - BOTTOM - (HEIGHT - BOTTOM - TOP) * min(loss, top) / top
        return f"{x:.1f},{y:.1f}"

    out = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" font-size="12">',
           f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
           f'<text x="{LEFT}" y="18">Cross-entropy in nats per token (values above {top:g} are drawn at {top:g})</text>']
    for loss in range(int(top) + 1):
        y = place((0, loss)).split(",")[1]
        out.append(f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y}" y2="{y}" stroke="#ddd"/><text x="{LEFT - 20}" y="{float(y) + 4}">{loss}</text>')
    step = max(1, round(most / 8 / 1e5) / 10)
    tick = 0.0
    while tick * 1e6 <= most:
        x = place((tick * 1e6, 0)).split(",")[0]
        out.append(f'<text x="{x}" y="{HEIGHT - BOTTOM + 18}" text-anchor="middle">{tick:g} M</text>')
        tick += step
    out.append(f'<text x="{WIDTH / 2}" y="{HEIGHT - 10}" text-anchor="middle">tokens seen</text>')
    out.append(f'<polyline fill="none" stroke="#4477aa" points="{" ".join(map(place, train))}"/>')
    out.append(f'<polyline fill="none" stroke="#cc3311" stroke-width="2" points="{" ".join(map(place, held))}"/>')
    for i, (colour, name) in enumerate((("#4477aa", "training batches"), ("#cc3311", "held-out topics, combinations and phrasings"))):
        out.append(f'<rect x="{WIDTH - 300}" y="{TOP + 12 + 20 * i}" width="12" height="3" fill="{colour}"/>'
                   f'<text x="{WIDTH - 280}" y="{TOP + 18 + 20 * i}">{name}</text>')
    with open(target, "w", encoding="utf-8") as file:
        file.write("\n".join(out) + "\n</svg>\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
