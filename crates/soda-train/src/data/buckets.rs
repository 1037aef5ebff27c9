//! Which size a picture is learnt at: kohya's buckets (sd-scripts, `make_bucket_resolutions`).
//!
//! With the base's side `r`, a step `s` and sides from `a` to `b`, the sizes are `w x h` and `h x w` for
//! `w = a, a + s, ... <= b` with the largest `h <= min(b, r² / w)` that is a multiple of `s` and at least `a`. A
//! picture takes the one nearest in aspect ratio. Nearness is `|ln(w / h) - ln(W / H)|`: other than kohya's
//! difference of the ratios it treats a picture and the same one on its side alike.

use crate::config::BucketConfig;
use crate::error::TrainError;

/// Width and height in pixels.
pub(crate) type Size = [u32; 2];

/// The sizes that pictures may have.
#[derive(Clone, Debug)]
pub(crate) struct Buckets {
    /// At least one; none twice.
    sizes: Vec<Size>,
    step: u32,
    upscale: bool,
}

impl Buckets {
    /// For a base of `side` pixels whose autoencoder takes `grid` pixels for a latent; without settings there
    /// is the square only.
    ///
    /// # Errors
    /// A step off the grid, sides off the step or the wrong way round, and settings that leave the square only.
    pub(crate) fn new(
        config: Option<&BucketConfig>,
        side: usize,
        grid: usize,
    ) -> Result<Self, TrainError> {
        let Some(config) = config else {
            return Ok(Self { sizes: vec![[side as u32; 2]], step: side as u32, upscale: true });
        };
        let refuse = |field, value, reason| Err(TrainError::Buckets { field, value, reason });
        let step = config.step;
        if step == 0 || !step.is_multiple_of(grid) {
            let reason = format!("it must be a multiple of {grid}, the autoencoder's grid");
            return refuse("buckets.step", step, reason);
        }
        let (least, most) = (
            config.min_side.unwrap_or((side / 2 / step).max(1) * step),
            config.max_side.unwrap_or(2 * side / step * step),
        );
        for (field, value) in [("buckets.min_side", least), ("buckets.max_side", most)] {
            if value == 0 || !value.is_multiple_of(step) {
                let reason = format!("it must be a multiple of `buckets.step`, {step}");
                return refuse(field, value, reason);
            }
        }
        if least > side {
            let reason =
                format!("it must be at most {side}, the side that the base was trained on");
            return refuse("buckets.min_side", least, reason);
        }
        if most < side {
            let reason =
                format!("it must be at least {side}, the side that the base was trained on");
            return refuse("buckets.max_side", most, reason);
        }
        let sizes = sizes(side, step, least, most);
        if sizes.len() < 2 {
            let reason = format!(
                "no size but the square is left for a base of {side} pixels; set a smaller `buckets.step` or \
                 sides further apart"
            );
            return refuse("buckets.step", step, reason);
        }
        Ok(Self { sizes, step: step as u32, upscale: config.upscale })
    }

    /// The size of a picture of these dimensions; `None` where it has less than one step and is not to be
    /// enlarged.
    pub(crate) fn of(&self, (width, height): (u32, u32)) -> Option<Size> {
        let ratio = |[w, h]: Size| (f64::from(w) / f64::from(h.max(1))).ln();
        let own = ratio([width, height]);
        let distance = |size: &Size| (ratio(*size) - own).abs();
        // Of two that are as near, the larger.
        let nearest = self.sizes.iter().min_by(|a, b| {
            let area = |size: &Size| size[0] * size[1];
            distance(a).total_cmp(&distance(b)).then(area(b).cmp(&area(a)))
        });
        let size = *nearest?;
        if self.upscale || (width >= size[0] && height >= size[1]) {
            return Some(size);
        }
        let fit = |own: u32, side: u32| (own / self.step * self.step).min(side);
        let size = [fit(width, size[0]), fit(height, size[1])];
        (size[0] > 0 && size[1] > 0).then_some(size)
    }

    /// Pixels between two sizes.
    pub(crate) fn step(&self) -> u32 {
        self.step
    }
}

fn sizes(side: usize, step: usize, least: usize, most: usize) -> Vec<Size> {
    let square = side / step * step;
    let mut sizes = vec![[square as u32; 2]];
    for width in (least..=most).step_by(step) {
        let height = (side * side / width / step * step).min(most);
        if height >= least {
            sizes.extend([[width as u32, height as u32], [height as u32, width as u32]]);
        }
    }
    sizes.sort_unstable();
    sizes.dedup();
    sizes
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]

    use super::*;

    fn buckets(config: &BucketConfig) -> Buckets {
        Buckets::new(Some(config), 512, 8).unwrap()
    }

    /// The list that sd-scripts makes for 512 pixels.
    #[test]
    fn the_sizes_are_kohyas() {
        let found = buckets(&BucketConfig::default()).sizes;
        let wide = [[832, 256], [896, 256], [960, 256], [1024, 256], [704, 320], [768, 320]];
        let expected =
            wide.into_iter().chain([[640, 384], [576, 448]]).flat_map(|[w, h]| [[w, h], [h, w]]);
        let mut expected: Vec<Size> = expected.chain([[512, 512]]).collect();
        expected.sort_unstable();
        assert_eq!(found, expected);
    }

    #[test]
    fn a_picture_gets_the_nearest_and_on_its_side_the_same_on_its_side() {
        let buckets = buckets(&BucketConfig::default());
        for dimensions in [(1000, 1000), (1600, 1200), (3000, 1000), (10_000, 10), (640, 427)] {
            let size = buckets.of(dimensions).unwrap();
            let turned = buckets.of((dimensions.1, dimensions.0)).unwrap();
            assert_eq!([size[1], size[0]], turned, "{dimensions:?}");
            let ratio = |w: u32, h: u32| (f64::from(w) / f64::from(h)).ln();
            let own = ratio(dimensions.0, dimensions.1);
            let found = (ratio(size[0], size[1]) - own).abs();
            assert!(buckets.sizes.iter().all(|s| (ratio(s[0], s[1]) - own).abs() >= found));
        }
        assert_eq!(buckets.of((100, 100)), Some([512, 512]));
        let square = Buckets::new(None, 512, 8).unwrap();
        assert_eq!(square.of((3000, 1000)), Some([512, 512]));
    }

    #[test]
    fn nothing_is_enlarged_where_that_is_not_wanted() {
        let config = BucketConfig { upscale: false, ..BucketConfig::default() };
        let buckets = buckets(&config);
        assert_eq!(buckets.of((2048, 2048)), Some([512, 512]));
        assert_eq!(buckets.of((300, 200)), Some([256, 192]));
        // Too narrow for its bucket, and long enough.
        assert_eq!(buckets.of((130, 3000)), Some([128, 1024]));
        assert_eq!(buckets.of((63, 200)), None);
    }

    #[test]
    fn what_cannot_be_is_refused_by_name() {
        let refused = |config: BucketConfig, side| {
            Buckets::new(Some(&config), side, 8).unwrap_err().to_string()
        };
        let config = BucketConfig::default;
        assert!(refused(BucketConfig { step: 12, ..config() }, 512).contains("multiple of 8"));
        assert!(refused(BucketConfig { step: 0, ..config() }, 512).contains("multiple of 8"));
        let uneven = refused(BucketConfig { min_side: Some(100), ..config() }, 512);
        assert!(uneven.contains("`buckets.min_side` is 100") && uneven.contains("64"), "{uneven}");
        assert!(
            refused(BucketConfig { min_side: Some(576), ..config() }, 512).contains("at most 512")
        );
        assert!(
            refused(BucketConfig { max_side: Some(448), ..config() }, 512).contains("at least")
        );
        assert!(refused(config(), 64).contains("square"));
    }
}
