"""Pictures that need more care than RGB in 8 bits, and what Pillow sees in them.

Writes crates/soda-models/tests/fixtures/pictures/: a CMYK JPEG as print programs write it, an animated
WebP and an animated PNG of two frames, and `NAME.rgb`, the bytes of Pillow's `convert("RGB")` of (the
first frame of) each.
"""

from pathlib import Path

from PIL import Image

OUT = Path(__file__).parents[2] / "crates/soda-models/tests/fixtures/pictures"
OUT.mkdir(parents=True, exist_ok=True)

# Smooth, so that JPEG's subsampling of colour changes little.
smooth = Image.new("RGB", (32, 24))
smooth.putdata([(40 + 5 * x, 30 + 7 * y, 200 - 3 * x) for y in range(24) for x in range(32)])
smooth.convert("CMYK").save(OUT / "cmyk.jpg", quality=98, subsampling=0)
frames = [smooth, Image.new("RGB", smooth.size, (255, 0, 0))]
for name in ("animated.webp", "animated.png"):
    frames[0].save(OUT / name, save_all=True, append_images=frames[1:], duration=100, lossless=True)
for path in [OUT / name for name in ("cmyk.jpg", "animated.webp", "animated.png")]:
    path.with_name(path.name + ".rgb").write_bytes(Image.open(path).convert("RGB").tobytes())
    print(path.name, path.stat().st_size, "bytes")
