//! The colours of the heat map: a straight line in OKLab (Ottosson, "A perceptual color space for image processing", 2020)
//! from a light yellow to a dark blue. Its lightness falls evenly, so the order survives every colour blindness and print in
//! black and white; its hue runs along the yellow-blue axis that red-green blindness leaves untouched.

/// L, a, b of the light end (cost nothing) and the dark end (costs most).
const LIGHT: [f64; 3] = [0.94, -0.02, 0.125];
const DARK: [f64; 3] = [0.27, 0.0, -0.115];

/// The colour for `t` in 0..=1 as `#rrggbb`, 0 the light end.
pub(super) fn color(t: f64) -> String {
    let t = t.clamp(0.0, 1.0);
    let [l, a, b] = std::array::from_fn(|i| LIGHT[i] + (DARK[i] - LIGHT[i]) * t);
    let [long, medium, short] = [
        l + 0.396_337_777_4 * a + 0.215_803_757_3 * b,
        l - 0.105_561_345_8 * a - 0.063_854_172_8 * b,
        l - 0.089_484_177_5 * a - 1.291_485_548 * b,
    ]
    .map(|root| root.powi(3));
    let linear = [
        4.076_741_662_1 * long - 3.307_711_591_3 * medium + 0.230_969_929_2 * short,
        -1.268_438_004_6 * long + 2.609_757_401_1 * medium - 0.341_319_396_5 * short,
        -0.004_196_086_3 * long - 0.703_418_614_7 * medium + 1.707_614_701 * short,
    ];
    let [red, green, blue] = linear.map(|x| {
        let x = x.clamp(0.0, 1.0);
        let encoded = if x <= 0.003_130_8 { 12.92 * x } else { 1.055 * x.powf(1.0 / 2.4) - 0.055 };
        (encoded * 255.0).round()
    });
    format!("#{:02x}{:02x}{:02x}", byte(red), byte(green), byte(blue))
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "the value is whole and lies in 0..=255")]
fn byte(value: f64) -> u8 {
    value as u8
}

/// Whether marks on `color(t)` should be light.
pub(super) fn is_dark(t: f64) -> bool {
    t > 0.56
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Relative luminance as WCAG 2 defines it.
    fn luminance(color: &str) -> f64 {
        let part = |at: usize| {
            let x = f64::from(u8::from_str_radix(&color[at..at + 2], 16).unwrap()) / 255.0;
            if x <= 0.040_45 { x / 12.92 } else { ((x + 0.055) / 1.055).powf(2.4) }
        };
        0.2126 * part(1) + 0.7152 * part(3) + 0.0722 * part(5)
    }

    #[test]
    fn luminance_falls_all_the_way() {
        let steps: Vec<f64> = (0..=50).map(|i| luminance(&color(f64::from(i) / 50.0))).collect();
        assert!(steps.windows(2).all(|pair| pair[1] < pair[0]), "{steps:?}");
        assert!(steps[0] > 0.75 && steps[50] < 0.05, "{steps:?}");
    }

    /// WCAG 2 asks for a contrast of 4.5 between text and its ground.
    #[test]
    fn marks_can_be_read_on_every_shade() {
        for i in 0..=100 {
            let t = f64::from(i) / 100.0;
            let (ground, mark) = (luminance(&color(t)), if is_dark(t) { 1.0 } else { 0.0 });
            let contrast = (f64::max(ground, mark) + 0.05) / (f64::min(ground, mark) + 0.05);
            assert!(contrast >= 4.5, "t {t}: contrast {contrast}");
        }
    }
}
