//! The loss curve as a self-contained SVG: every browser and code host shows it, nothing is linked.

use std::fmt::Write as _;

const WIDTH: f32 = 720.0;
const HEIGHT: f32 = 280.0;
const MARGIN: f32 = 44.0;

/// Steps averaged for the smooth line; diffusion losses jump with the timestep drawn.
const WINDOW: usize = 20;

/// Loss over steps: every step as a faint line, a running mean over it.
pub(crate) fn loss_svg(losses: &[f32]) -> String {
    let top = losses.iter().copied().fold(f32::MIN_POSITIVE, f32::max) * 1.05;
    let last = losses.len().saturating_sub(1).max(1) as f32;
    let x = |step: usize| MARGIN + (WIDTH - 2.0 * MARGIN) * step as f32 / last;
    let y = |loss: f32| HEIGHT - MARGIN - (HEIGHT - 2.0 * MARGIN) * (loss / top).clamp(0.0, 1.0);
    let line = |values: &[f32]| {
        values.iter().enumerate().fold(String::new(), |mut points, (step, &loss)| {
            // Writing to a String cannot fail.
            let _ = write!(points, "{:.1},{:.1} ", x(step), y(loss));
            points
        })
    };
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" font-family=\"sans-serif\" \
         font-size=\"12\">\n<rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n"
    );
    for tick in 0..=4 {
        let loss = top * tick as f32 / 4.0;
        let _ = writeln!(
            svg,
            "<line x1=\"{MARGIN}\" x2=\"{}\" y1=\"{y:.1}\" y2=\"{y:.1}\" stroke=\"#ddd\"/>\
             <text x=\"{}\" y=\"{:.1}\" text-anchor=\"end\" fill=\"#555\">{loss:.3}</text>",
            WIDTH - MARGIN,
            MARGIN - 6.0,
            y(loss) + 4.0,
            y = y(loss),
        );
    }
    let _ = write!(
        svg,
        "<polyline points=\"{}\" fill=\"none\" stroke=\"#9ecae1\"/>\n\
         <polyline points=\"{}\" fill=\"none\" stroke=\"#08519c\" stroke-width=\"2\"/>\n\
         <text x=\"{}\" y=\"{}\" text-anchor=\"middle\" fill=\"#555\">step 1 to {}; dark: mean of {WINDOW} steps</text>\n\
         </svg>\n",
        line(losses),
        line(&running_mean(losses)),
        WIDTH / 2.0,
        HEIGHT - 14.0,
        losses.len(),
    );
    svg
}

/// Mean of each value and up to `WINDOW - 1` before it.
pub(crate) fn running_mean(values: &[f32]) -> Vec<f32> {
    (0..values.len())
        .map(|end| {
            let window = &values[(end + 1).saturating_sub(WINDOW)..=end];
            window.iter().sum::<f32>() / window.len() as f32
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mean_of_a_constant_is_that_constant_and_it_lags_a_step() {
        assert_eq!(running_mean(&[2.0; 50]), vec![2.0; 50]);
        let mut step = vec![0.0; 30];
        step.extend([1.0; 30]);
        let mean = running_mean(&step);
        assert_eq!((mean[29], mean[30], mean[49]), (0.0, 0.05, 1.0));
    }

    #[test]
    fn no_loss_and_one_loss_still_draw() {
        for losses in [&[][..], &[0.5], &[0.0, 0.0]] {
            let svg = loss_svg(losses);
            assert!(svg.ends_with("</svg>\n") && !svg.contains("NaN"), "{svg}");
        }
    }
}
