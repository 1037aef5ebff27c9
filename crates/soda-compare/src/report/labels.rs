//! Label placement for scatter plots: beside each point, without overlap.

/// A rectangle in pixels: left, top, right, bottom.
pub(super) type Area = [i32; 4];

/// The height of a line of text, in pixels.
pub(super) const HEIGHT: i32 = 14;
/// An upper estimate of the width of a letter at that height, since the font is not known.
const LETTER_WIDTH: i32 = 8;
/// The gap between a point and its label.
const GAP: i32 = 8;

/// Returns the upper left corners of the labels of `points` in `frame`.
///
/// Each label in turn takes the position that covers least of the points, of the areas `drawn` and of
/// earlier labels. Among equals it takes the position nearest to the right of its point.
pub(super) fn label_corners(
    points: &[(i32, i32)],
    names: &[&str],
    drawn: &[Area],
    frame: Area,
) -> Vec<(i32, i32)> {
    let dot = |(x, y): &(i32, i32)| [x - 6, y - 6, x + 6, y + 6];
    let mut taken: Vec<Area> = points.iter().map(dot).chain(drawn.iter().copied()).collect();
    let mut corners = Vec::with_capacity(names.len());
    for ((x, y), name) in points.iter().zip(names) {
        let (width, half) = (width(name), HEIGHT / 2);
        let covered = |area: &Area| {
            let others: i32 = taken.iter().map(|other| overlap(area, other)).sum();
            // A label outside the frame is lost, which is worse than an overlap.
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
            .min_by_key(covered);
        if let Some(area) = best {
            corners.push((area[0], area[1]));
            taken.push(area);
        }
    }
    corners
}

/// An upper estimate of the width of a label.
fn width(name: &str) -> i32 {
    LETTER_WIDTH * name.chars().count() as i32
}

/// The number of pixels in both areas.
fn overlap(one: &Area, other: &Area) -> i32 {
    let across = one[2].min(other[2]) - one[0].max(other[0]);
    let down = one[3].min(other[3]) - one[1].max(other[1]);
    across.max(0) * down.max(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    const FRAME: Area = [0, 0, 600, 400];

    /// The areas of the labels. Asserts that each is inside the frame and covers no point.
    fn areas(points: &[(i32, i32)], names: &[&str]) -> Vec<Area> {
        let corners = label_corners(points, names, &[], FRAME);
        let area = |((x, y), name): (&(i32, i32), &&str)| [*x, *y, x + width(name), y + HEIGHT];
        let areas: Vec<Area> = corners.iter().zip(names).map(area).collect();
        for area in &areas {
            assert_eq!(overlap(area, &FRAME), width_of(area) * HEIGHT, "{area:?} leaves the frame");
            let covers = |(x, y): &(i32, i32)| overlap(area, &[x - 4, y - 4, x + 4, y + 4]) > 0;
            assert!(!points.iter().any(covers), "{area:?} covers a point");
        }
        areas
    }

    fn width_of(area: &Area) -> i32 {
        area[2] - area[0]
    }

    #[test]
    fn labels_overlap_neither_each_other_nor_points_nor_the_frame() {
        let names = ["soda-svd", "soda-qr", "svdiff", "lora-1", "lora-32", "soda-svd-dco"];
        for points in [
            // Points that are far apart, in the corners, and close together.
            [(100, 100), (300, 100), (500, 100), (100, 300), (300, 300), (500, 300)],
            [(2, 2), (598, 2), (2, 398), (598, 398), (300, 2), (300, 398)],
            [(300, 200), (310, 204), (296, 190), (305, 215), (320, 196), (290, 207)],
        ] {
            let areas = areas(&points, &names);
            for (index, area) in areas.iter().enumerate() {
                let overlapping = areas[..index].iter().filter(|other| overlap(area, other) > 0);
                assert_eq!(overlapping.count(), 0, "{areas:?}");
            }
        }
        // A label goes to the right of its point, or above if a bar is there.
        assert_eq!(label_corners(&[(100, 100)], &["a"], &[], FRAME), [(108, 93)]);
        assert_eq!(label_corners(&[(100, 100)], &["a"], &[[60, 99, 140, 101]], FRAME), [(112, 77)]);
    }
}
