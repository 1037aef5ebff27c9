//! Where names of points are written so that they can be read: beside their point, clear of the others.

/// A rectangle in pixels: left, top, right, bottom.
pub(crate) type Area = [i32; 4];

/// Height of a line of text.
pub(crate) const HEIGHT: i32 = 14;
/// About the width of a letter at that height; fonts differ, and none of the common ones is much wider.
const LETTER: i32 = 8;
/// Between a point and its name.
const GAP: i32 = 8;

/// The left upper corners of the names of `points` in `frame`.
///
/// Each in turn takes the place that hides least of the points, of `drawn`, and of the names before it; of equals the
/// nearest to the right of its point.
pub(crate) fn places(
    points: &[(i32, i32)],
    names: &[&str],
    drawn: &[Area],
    frame: Area,
) -> Vec<(i32, i32)> {
    let dot = |(x, y): &(i32, i32)| [x - 6, y - 6, x + 6, y + 6];
    let mut taken: Vec<Area> = points.iter().map(dot).chain(drawn.iter().copied()).collect();
    let mut places = Vec::with_capacity(names.len());
    for ((x, y), name) in points.iter().zip(names) {
        let (width, half) = (width(name), HEIGHT / 2);
        let hidden = |area: &Area| {
            let others: i32 = taken.iter().map(|other| overlap(area, other)).sum();
            // What leaves the frame is lost, which is worse than what is crossed.
            others + 4 * (width * HEIGHT - overlap(area, &frame))
        };
        let best = (0..4)
            .flat_map(|ring| {
                let (dx, dy) = (GAP + 4 * ring, (HEIGHT + 2) * ring);
                let centre = x - width / 2;
                [
                    (x + dx, y - half),
                    (x - dx - width, y - half),
                    (x + dx, y - half - dy),
                    (x + dx, y - half + dy),
                    (centre, y - half - GAP - dy),
                    (centre, y - half + GAP + dy),
                    (x - dx - width, y - half - dy),
                    (x - dx - width, y - half + dy),
                ]
            })
            .map(|(left, top)| [left, top, left + width, top + HEIGHT])
            .min_by_key(hidden);
        if let Some(area) = best {
            places.push((area[0], area[1]));
            taken.push(area);
        }
    }
    places
}

/// How wide a name is, about.
fn width(name: &str) -> i32 {
    LETTER * name.chars().count() as i32
}

/// Pixels that two areas share.
fn overlap(one: &Area, other: &Area) -> i32 {
    let across = one[2].min(other[2]) - one[0].max(other[0]);
    let down = one[3].min(other[3]) - one[1].max(other[1]);
    across.max(0) * down.max(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    const FRAME: Area = [0, 0, 600, 400];

    /// The areas of the names, each checked to be in the frame and off all points.
    fn areas(points: &[(i32, i32)], names: &[&str]) -> Vec<Area> {
        let places = places(points, names, &[], FRAME);
        let area = |((x, y), name): (&(i32, i32), &&str)| [*x, *y, x + width(name), y + HEIGHT];
        let areas: Vec<Area> = places.iter().zip(names).map(area).collect();
        for area in &areas {
            assert_eq!(overlap(area, &FRAME), width_of(area) * HEIGHT, "{area:?} leaves the frame");
            let hides = |(x, y): &(i32, i32)| overlap(area, &[x - 4, y - 4, x + 4, y + 4]) > 0;
            assert!(!points.iter().any(hides), "{area:?} hides a point");
        }
        areas
    }

    fn width_of(area: &Area) -> i32 {
        area[2] - area[0]
    }

    #[test]
    fn names_cross_neither_each_other_nor_a_point_nor_the_edge() {
        let names = ["soda-svd", "soda-qr", "svdiff", "lora-1", "lora-32", "soda-svd-dco"];
        for points in [
            // Apart, in the corners, and all within a few pixels.
            [(100, 100), (300, 100), (500, 100), (100, 300), (300, 300), (500, 300)],
            [(2, 2), (598, 2), (2, 398), (598, 398), (300, 2), (300, 398)],
            [(300, 200), (310, 204), (296, 190), (305, 215), (320, 196), (290, 207)],
        ] {
            let areas = areas(&points, &names);
            for (index, area) in areas.iter().enumerate() {
                let crossed = areas[..index].iter().filter(|other| overlap(area, other) > 0);
                assert_eq!(crossed.count(), 0, "{areas:?}");
            }
        }
        // With room, to the right; where a bar is, above it.
        assert_eq!(places(&[(100, 100)], &["a"], &[], FRAME), [(108, 93)]);
        assert_eq!(places(&[(100, 100)], &["a"], &[[60, 99, 140, 101]], FRAME), [(112, 77)]);
    }
}
