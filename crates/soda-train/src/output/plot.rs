//! Line charts and axes as SVG text, which a browser shows without a network.

use std::ops::Range;

use maud::html;
use plotters::coord::Shift;
use plotters::coord::ranged1d::{BoldPoints, Ranged as _};
use plotters::coord::types::RangedCoordf64;
use plotters::prelude::*;

/// A drawing area that becomes an SVG.
pub type Figure<'a> = DrawingArea<SVGBackend<'a>, Shift>;

/// A pair of linear axes on a [`Figure`].
pub type Chart<'a, 'b> =
    ChartContext<'a, SVGBackend<'b>, Cartesian2d<RangedCoordf64, RangedCoordf64>>;

/// The result of drawing. Drawing to a string fails only when memory is exhausted.
pub type DrawResult = Result<(), DrawingAreaErrorKind<std::io::Error>>;

/// One series of a line chart.
#[derive(Clone, Debug)]
pub struct Line {
    /// The name in the legend.
    pub name: String,
    /// The points `(x, y)`. Points that are not finite are left out.
    pub points: Vec<(f64, f64)>,
    /// Whether the line is thin and grey, behind the others.
    pub faint: bool,
}

/// Colours that remain distinct on white for viewers who cannot tell red from green (Tableau's ten and two
/// dark ones).
const COLORS: [RGBColor; 12] = [
    RGBColor(31, 119, 180),
    RGBColor(255, 127, 14),
    RGBColor(44, 160, 44),
    RGBColor(214, 39, 40),
    RGBColor(148, 103, 189),
    RGBColor(140, 86, 75),
    RGBColor(227, 119, 194),
    RGBColor(127, 127, 127),
    RGBColor(188, 189, 34),
    RGBColor(23, 190, 207),
    RGBColor(0, 0, 0),
    RGBColor(10, 60, 110),
];

/// The colour of the series with this index. All figures of a page use the same colours.
pub fn color(index: usize) -> RGBColor {
    COLORS[index % COLORS.len()]
}

/// Width and height of a line chart without its legend, in pixels. Two charts fit side by side on a page, and
/// one remains legible at the width of a phone.
const SIZE: (u32, u32) = (520, 300);
/// Font of axes and legends, whose glyphs are about `GLYPH` pixels wide.
const FONT: (&str, u32) = ("sans-serif", 17);
const GLYPH: u32 = 8;
/// Pixels from one row of the legend to the next.
const LEGEND_ROW: u32 = 20;
/// Pixels of a legend's entry beside its name: the sample of the line, and the space to the next entry.
const LEGEND_MARK: u32 = 52;
/// The largest number of labelled ticks on an axis.
const TICKS: usize = 7;

/// A line chart with a legend above it, as SVG text. The text is empty if no line has a finite point.
///
/// `x` and `y` name the axes. A line without points is left out of the legend and the other lines keep their
/// colours.
///
/// ```
/// use soda_train::plot::{Line, line_chart};
///
/// let line = Line { name: "loss".into(), points: vec![(1.0, 0.5), (2.0, 0.25)], faint: false };
/// assert!(line_chart("step", "loss", &[line]).starts_with("<svg"));
/// assert!(line_chart("step", "loss", &[]).is_empty());
/// ```
pub fn line_chart(x: &str, y: &str, lines: &[Line]) -> String {
    let shown: Vec<Shown<'_>> = faint_first(lines).filter_map(Shown::new).collect();
    let points = || shown.iter().flat_map(|line| &line.points);
    let (Some(x_range), Some(y_range)) = (
        padded_range(points().map(|point| point.0), 0.01),
        padded_range(points().map(|point| point.1), 0.05),
    ) else {
        return String::new();
    };
    let widths: Vec<u32> = shown.iter().map(|line| LEGEND_MARK + text_width(line.name)).collect();
    let places = legend_places(&widths, SIZE.0);
    let rows = places.last().map_or(0, |(_, row)| row + 1);
    let legend_height = 8 + LEGEND_ROW * rows;
    let label_width = Ticks::of(&y_range).width();
    let text = svg((SIZE.0, SIZE.1 + legend_height), |figure| {
        let (legend, plot) = figure.split_vertically(legend_height);
        let mut chart = ChartBuilder::on(&plot)
            .margin(8)
            .margin_right(20)
            .x_label_area_size(44)
            .y_label_area_size(32 + label_width)
            .build_cartesian_2d(x_range, y_range)?;
        draw_axes(&mut chart, x, y)?;
        for (line, (left, row)) in shown.iter().zip(places) {
            // One point is no line, and would not be seen.
            if let [point] = line.points[..] {
                chart.draw_series([Circle::new(point, 3, line.style)])?;
            }
            chart.draw_series(LineSeries::new(line.points.iter().copied(), line.style))?;
            let (left, top) = (left as i32 + 12, (8 + row * LEGEND_ROW) as i32);
            legend.draw(&PathElement::new([(left, top + 7), (left + 20, top + 7)], line.style))?;
            legend.draw(&Text::new(line.name.to_owned(), (left + 26, top), FONT))?;
        }
        Ok(())
    });
    let names = shown.iter().map(|line| line.name).collect::<Vec<_>>().join(", ");
    with_label(&text, &format!("Chart of {y} by {x}: {names}"))
}

/// A line with at least one finite point, and how it is drawn.
struct Shown<'a> {
    name: &'a str,
    points: Vec<(f64, f64)>,
    style: ShapeStyle,
}

impl<'a> Shown<'a> {
    /// `index` is the line's place among the faint ones or among the others.
    fn new((index, line): (usize, &'a Line)) -> Option<Self> {
        let finite = |(x, y): &(f64, f64)| x.is_finite() && y.is_finite();
        let points: Vec<_> = line.points.iter().copied().filter(finite).collect();
        let style = if line.faint {
            RGBColor(170, 190, 210).stroke_width(1)
        } else {
            color(index).stroke_width(2)
        };
        (!points.is_empty()).then_some(Self { name: &line.name, points, style })
    }
}

/// The faint lines and then the others, which are drawn over them. Each has its place among its own kind.
fn faint_first(lines: &[Line]) -> impl Iterator<Item = (usize, &Line)> {
    [true, false]
        .into_iter()
        .flat_map(|faint| lines.iter().filter(move |line| line.faint == faint).enumerate())
}

/// Draws labelled axes and a grid line at each tick of `chart`. No two ticks of an axis have the same label.
///
/// # Errors
/// Returns the error of the backend, which a string does not have.
pub fn draw_axes(chart: &mut Chart<'_, '_>, x: &str, y: &str) -> DrawResult {
    let (x_ticks, y_ticks) = (Ticks::of(&chart.x_range()), Ticks::of(&chart.y_range()));
    chart
        .configure_mesh()
        .x_desc(x)
        .y_desc(y)
        .x_labels(TICKS)
        .y_labels(TICKS)
        .x_label_formatter(&|value: &f64| x_ticks.label(*value))
        .y_label_formatter(&|value: &f64| y_ticks.label(*value))
        .label_style(FONT)
        .axis_desc_style(FONT)
        .light_line_style(TRANSPARENT)
        .bold_line_style(BLACK.mix(0.12))
        .draw()
}

/// Draws a figure of `size` (width, height) pixels with `draw` and returns it as SVG text. The text is empty
/// if `draw` fails, so that a page is written without the figure.
pub fn svg(size: (u32, u32), draw: impl FnOnce(&Figure<'_>) -> DrawResult) -> String {
    let mut text = String::new();
    let figure = SVGBackend::with_string(&mut text, size).into_drawing_area();
    let drawn = draw(&figure).and_then(|()| figure.present());
    drop(figure);
    if drawn.is_ok() { text } else { String::new() }
}

/// `text`, an SVG, with a description for screen readers.
fn with_label(text: &str, label: &str) -> String {
    let label = html! { (label) }.into_string();
    text.replacen("<svg ", &format!("<svg role=\"img\" aria-label=\"{label}\" "), 1)
}

/// The range of `values` with `share` of its length added at both ends. `None` if there are no values.
fn padded_range(values: impl Iterator<Item = f64> + Clone, share: f64) -> Option<Range<f64>> {
    let low = values.clone().reduce(f64::min)?;
    let high = values.reduce(f64::max)?;
    // A constant gets a range of its own size, or it could not be drawn.
    let magnitude = low.abs().max(high.abs());
    let padding = if high - low > 1e-9 * magnitude {
        share * (high - low)
    } else if magnitude > 0.0 {
        0.1 * magnitude
    } else {
        1.0
    };
    Some(low - padding..high + padding)
}

/// An estimate of the pixels that `text` takes in `FONT`.
fn text_width(text: &str) -> u32 {
    GLYPH * text.chars().count() as u32
}

/// Places legend entries of these widths in rows of `width` pixels: the left edge and the row of each.
fn legend_places(widths: &[u32], width: u32) -> Vec<(u32, u32)> {
    let (mut left, mut row) = (0, 0);
    let mut places = Vec::with_capacity(widths.len());
    for entry in widths {
        if left > 0 && left + entry > width {
            (left, row) = (0, row + 1);
        }
        places.push((left, row));
        left += entry;
    }
    places
}

/// The labelled ticks of an axis.
struct Ticks {
    values: Vec<f64>,
    decimals: usize,
    scientific: bool,
}

impl Ticks {
    /// Chooses the fewest decimals with which every label states its tick to within a hundredth of the
    /// spacing. Numbers that are all below 1e-3 or reach 1e6 are in scientific notation.
    fn of(range: &Range<f64>) -> Self {
        let values = RangedCoordf64::from(range.clone()).key_points(BoldPoints(TICKS));
        let spacing = values.windows(2).map(|pair| pair[1] - pair[0]).fold(f64::INFINITY, f64::min);
        let largest = values.iter().fold(0.0, |most: f64, value| most.max(value.abs()));
        let scientific = largest > 0.0 && !(1e-3..1e6).contains(&largest);
        let mut ticks = Self { values, decimals: 0, scientific };
        let exact = |ticks: &Self| {
            let error =
                |value: &f64| ticks.label(*value).parse().map_or(f64::NAN, |x: f64| x - value);
            ticks.values.iter().all(|value| error(value).abs() <= 0.01 * spacing)
        };
        while ticks.decimals < 17 && !exact(&ticks) {
            ticks.decimals += 1;
        }
        ticks
    }

    fn label(&self, value: f64) -> String {
        // What is left of a tick at zero after rounding, such as 1e-17, or -0.
        let largest = self.values.iter().fold(0.0, |most: f64, value| most.max(value.abs()));
        if value.abs() <= 1e-9 * largest {
            return "0".to_owned();
        }
        let decimals = self.decimals;
        if self.scientific { format!("{value:.decimals$e}") } else { format!("{value:.decimals$}") }
    }

    /// Pixels of the widest label.
    fn width(&self) -> u32 {
        self.values.iter().map(|value| text_width(&self.label(*value))).max().unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(points: &[(f64, f64)]) -> Line {
        Line { name: "loss <a>".to_owned(), points: points.to_vec(), faint: false }
    }

    /// The numbers among the labels of an SVG that are anchored as those of the x axis ("middle") or y axis
    /// ("end").
    fn tick_labels(svg: &str, anchor: &str) -> Vec<String> {
        let anchored = format!("text-anchor=\"{anchor}\"");
        let texts = svg.split("<text ").skip(1).filter(|text| text.contains(&anchored));
        let content =
            |text: &str| Some(text.split_once('>')?.1.split_once('<')?.0.trim().to_owned());
        texts.filter_map(content).filter(|label| label.parse::<f64>().is_ok()).collect()
    }

    #[test]
    fn ticks_of_one_axis_have_distinct_labels() {
        let ranges = [
            (0.0, 4e-7),
            (1.2e-7, 9.6e-7),
            (0.0, 300.0),
            (0.1, 0.11),
            (0.2501, 0.2502),
            (-3e-9, 2e-9),
            (1e-3, 5e-3),
            (1e5, 1.00001e5),
            (2e6, 3e9),
            (0.5, 0.5),
            (0.0, 0.0),
            (3e-12, 3e-12),
        ];
        for (low, high) in ranges {
            let svg = line_chart("step", "size", &[line(&[(low, low), (high, high)])]);
            for anchor in ["middle", "end"] {
                let labels = tick_labels(&svg, anchor);
                assert!(labels.len() >= 2, "{low} to {high}: {labels:?}");
                let mut distinct = labels.clone();
                distinct.sort();
                distinct.dedup();
                assert_eq!(distinct.len(), labels.len(), "{low} to {high}: {labels:?}");
                assert!(labels.iter().all(|label| label.len() <= 9), "{labels:?}");
            }
        }
    }

    #[test]
    fn tick_labels_are_scientific_only_for_small_and_large_numbers() {
        let labels = |high| {
            let ticks = Ticks::of(&(0.0..high));
            ticks.values.iter().map(|value| ticks.label(*value)).collect::<Vec<_>>()
        };
        assert_eq!(labels(4.5e-7)[..3], ["0", "1e-7", "2e-7"]);
        assert_eq!(labels(0.45)[..3], ["0", "0.1", "0.2"]);
        assert_eq!(labels(300.0)[..3], ["0", "50", "100"]);
    }

    #[test]
    fn single_points_constants_and_nan_are_drawn() {
        for points in [
            &[(1.0, 0.5)][..],
            &[(1.0, 0.0), (2.0, 0.0)],
            &[(1.0, 2.0), (2.0, f64::NAN), (3.0, 1.0)],
        ] {
            let svg = line_chart("step", "loss", &[line(points)]);
            assert!(svg.contains("loss &lt;a&gt;") && !svg.contains("NaN"), "{svg}");
        }
        assert_eq!(line_chart("step", "loss", &[line(&[])]), "");
        assert_eq!(line_chart("step", "loss", &[line(&[(0.0, f64::NAN)])]), "");
    }

    #[test]
    fn a_line_without_points_leaves_the_other_colours_alone() {
        let some = line(&[(1.0, 0.5), (2.0, 0.25)]);
        let svg = line_chart("step", "loss", &[line(&[]), some]);
        assert!(svg.contains("#FF7F0E") && !svg.contains("#1F77B4"), "{svg}");
        assert_eq!(svg.matches("loss &lt;a&gt;\n").count(), 1, "{svg}");
    }

    #[test]
    fn legend_entries_do_not_overlap_and_stay_in_the_width() {
        let places = legend_places(&[200, 200, 150, 600, 10], 520);
        assert_eq!(places, [(0, 0), (200, 0), (0, 1), (0, 2), (0, 3)]);
    }
}
