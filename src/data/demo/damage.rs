//! Six kinds of damage, and the mask of what they changed.
//! A damage changes what the camera sees, before light, blur and noise, so its sharpness and grain are those of its
//! surroundings. `strength = severity * (10 + roughness)` grey levels: what shows on paper is lost between bricks.
//! `mask = close_2(max over channels |damaged - clean| >= NOTICEABLE)`, on the two developed pictures.

use super::photo::{Picture, SIZE, Surface, View};
use crate::rng::Rng;
use std::f32::consts::{FRAC_PI_2, FRAC_PI_4, TAU};

/// A pixel counts as changed from this many grey levels on, in any channel.
pub const NOTICEABLE: u8 = 8;
/// Gaps of up to twice this many pixels inside a defect belong to it.
const CLOSE: usize = 2;

/// What can go wrong with a surface.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Damage {
    /// A dark depression: a bump map lit from one side that also bends the texture.
    Dent,
    /// A hair or a thread that does not belong, with its shadow.
    Fibre,
    /// A thread, a fibre of the grain or a strip of the surface is gone.
    Missing,
    /// A piece of the same material, put back turned, at another scale, or from elsewhere.
    Patch,
    /// One to three fine scratches with a lit and a shaded flank.
    Scratch,
    /// A dried liquid: darker, tinted, with a ring at its edge.
    Stain,
}

impl Damage {
    /// All kinds, in the order of their names.
    pub const ALL: [Damage; 6] =
        [Damage::Dent, Damage::Fibre, Damage::Missing, Damage::Patch, Damage::Scratch, Damage::Stain];

    /// Name of the folder.
    pub fn name(self) -> &'static str {
        match self {
            Damage::Dent => "dent",
            Damage::Fibre => "fibre",
            Damage::Missing => "missing",
            Damage::Patch => "patch",
            Damage::Scratch => "scratch",
            Damage::Stain => "stain",
        }
    }
}

/// A picture being damaged.
pub struct Scene<'a> {
    /// Where replacement material comes from.
    pub surface: &'a Surface,
    /// How the camera looks at it.
    pub view: View,
    /// The undamaged picture, and what is made of it.
    pub picture: Picture,
    /// About 1: 0.5 is hard to see, 1.7 plain.
    pub severity: f32,
}

impl Scene<'_> {
    /// Damages the picture.
    pub fn apply(&mut self, damage: Damage, rng: &mut Rng) {
        match damage {
            Damage::Dent => self.dent(rng),
            Damage::Fibre => self.fibre(rng),
            Damage::Missing => self.missing(rng),
            Damage::Patch => self.patch(rng),
            Damage::Scratch => self.scratch(rng),
            Damage::Stain => self.stain(rng),
        }
    }

    /// Grey levels by which this damage differs from its surroundings.
    fn strength(&self) -> f32 {
        self.severity * (10.0 + self.surface.roughness)
    }

    /// Factor for the width of thin things: a hair is lost on a rough surface.
    fn thickness(&self) -> f32 {
        1.0 + self.surface.roughness / 30.0
    }

    /// Adds `levels[c] * weight(u, v)` to channel c.
    fn add(&mut self, weight: &Layer, levels: [f32; 3]) {
        let channels = self.picture.channels;
        for (pixel, w) in self.picture.data.chunks_exact_mut(channels).zip(&weight.0) {
            pixel.iter_mut().zip(levels).for_each(|(x, level)| *x += w * level);
        }
    }

    /// Mean colour under a layer.
    fn mean(&self, weight: &Layer) -> [f32; 3] {
        let (mut sum, mut total) = ([0.0; 3], 1e-6);
        for (pixel, w) in self.picture.data.chunks_exact(self.picture.channels).zip(&weight.0) {
            total += w;
            sum.iter_mut().zip(pixel).for_each(|(sum, x)| *sum += w * x);
        }
        sum.map(|s| s / total)
    }

    fn scratch(&mut self, rng: &mut Rng) {
        let strength = self.strength() * 1.5;
        let (sun, sign) = (rng.uniform_in(0.0, TAU), if rng.below(4) == 0 { -1.0 } else { 1.0 });
        let (start, angle) = (somewhere(rng), rng.uniform_in(0.0, TAU));
        let (mut core, mut flank) = (Layer::new(), Layer::new());
        for k in 0..1 + rng.below(3) {
            let width = self.thickness() * rng.uniform_in(0.35, 0.9);
            let shift = k as f32 * rng.uniform_in(3.0, 8.0);
            let from = (start.0 - shift * angle.sin(), start.1 + shift * angle.cos());
            let heading = angle + rng.uniform_in(-0.06, 0.06);
            let path = walk(rng, from, heading, 0.0, 0.002, (50.0, 170.0));
            let wear = Noise::new(rng);
            let n = path.len() as f32;
            for (i, &(x, y)) in path.iter().enumerate() {
                // Pressed hardest in the middle, and skipping a little.
                let along = i as f32 / n;
                let opacity = (along * (1.0 - along) * 4.0).sqrt() * (0.55 + 0.6 * wear.at(along * 9.0, k as f32));
                core.dab(x, y, width, opacity);
                let away = width + 0.9;
                flank.dab(x + away * sun.cos(), y + away * sun.sin(), width, opacity);
            }
        }
        self.add(&flank, [-0.55 * sign * strength; 3]);
        self.add(&core, [sign * strength; 3]);
    }

    fn stain(&mut self, rng: &mut Rng) {
        let strength = self.strength() * 1.15;
        let (centre, radius, noise) = (somewhere(rng), rng.uniform_in(13.0, 36.0), Noise::new(rng));
        let stretch = rng.uniform_in(0.7, 1.4);
        let ring = rng.uniform_in(0.2, 0.7);
        let layer = Layer::from(|u, v| {
            let (x, y) = ((u - centre.0) * stretch / radius, (v - centre.1) / stretch / radius);
            let d = x.hypot(y) + 0.7 * (noise.fractal(u / 22.0, v / 22.0) - 0.5);
            let edge = (d - 0.92) / 0.07;
            let inside = 1.0 - smooth(0.86, 1.06, d);
            inside * (0.55 + 0.5 * noise.fractal(u / 9.0 + 5.0, v / 9.0)) + ring * (-edge * edge).exp()
        });
        // Coffee, oil, rust: they swallow blue most.
        let tint = [[0.75, 1.0, 1.25], [0.95, 1.0, 1.05], [0.5, 1.1, 1.4]][rng.below(3)];
        let tint = if self.picture.channels == 1 { [1.0; 3] } else { tint };
        // Multiplied, not painted over: the texture shows through.
        let mean = self.mean(&layer);
        let channels = self.picture.channels;
        for (pixel, w) in self.picture.data.chunks_exact_mut(channels).zip(&layer.0) {
            for ((x, mean), tint) in pixel.iter_mut().zip(mean).zip(tint) {
                *x *= (1.0 - w * tint * strength / mean.max(40.0)).max(0.15);
            }
        }
    }

    fn missing(&mut self, rng: &mut Rng) {
        let strength = self.strength();
        let any = rng.uniform_in(0.0, TAU);
        let along = self.surface.grain().map_or(any, |grain| self.view.direction(grain));
        let (width, lit) = (self.thickness() * rng.uniform_in(1.1, 2.6), if rng.below(2) == 0 { -1.0 } else { 1.0 });
        let start = somewhere(rng);
        let path = walk(rng, start, along, 0.0, 0.0015, (60.0, 190.0));
        let (mut gap, mut edge) = (Layer::new(), Layer::new());
        let n = path.len() as f32;
        for (i, &(x, y)) in path.iter().enumerate() {
            let to_end = (i as f32).min(n - i as f32) / 2.0;
            let w = width * (to_end / 6.0).min(1.0).sqrt();
            gap.dab(x, y, w, 0.92);
            let away = lit * (width + 1.0);
            edge.dab(x - away * along.sin(), y + away * along.cos(), 0.4, 0.5 * (to_end / 6.0).min(1.0));
        }
        // Below the surface it is dark and has no texture of its own, but the light on it is that of the place.
        let below = self.local_mean(7);
        let channels = self.picture.channels;
        blend(&mut self.picture, &gap, |u, v| {
            let pixel = &below[(v * SIZE + u) * channels..][..channels];
            std::array::from_fn(|c| pixel[c.min(channels - 1)] - 1.15 * strength)
        });
        self.add(&edge, [0.9 * strength; 3]);
    }

    fn dent(&mut self, rng: &mut Rng) {
        let strength = self.strength();
        let (centre, sun) = (somewhere(rng), rng.uniform_in(0.0, TAU));
        let (a, b, turn) = (rng.uniform_in(11.0, 24.0), rng.uniform_in(9.0, 17.0), rng.uniform_in(0.0, TAU));
        let noise = Noise::new(rng);
        let depth = 2.2 + 1.5 * self.severity;
        for v in 0..SIZE {
            for u in 0..SIZE {
                let (x, y) = (u as f32 - centre.0, v as f32 - centre.1);
                let (p, q) = (x * turn.cos() + y * turn.sin(), y * turn.cos() - x * turn.sin());
                let wobble = 1.0 + 0.35 * (noise.at(u as f32 / 14.0, v as f32 / 14.0) - 0.5);
                let r = (p / a).hypot(q / b) * wobble;
                if r >= 1.0 {
                    continue;
                }
                // Height (1 - r^2)^2; its slope, scaled to at most 1, points outwards.
                let slope = 2.6 * r * (1.0 - r * r);
                let (nx, ny) = (x / x.hypot(y).max(1e-3), y / x.hypot(y).max(1e-3));
                let shade = 1.25 * slope * (nx * sun.cos() + ny * sun.sin()) - 0.35 * (1.0 - r * r).powi(2);
                let (x, y) = self.view.place(u as f32 + depth * slope * nx, v as f32 + depth * slope * ny);
                let bent = self.surface.at(x, y);
                // Light is multiplied: black joints stay black.
                let pixel = self.picture.pixel_mut(u, v);
                pixel
                    .iter_mut()
                    .zip(bent)
                    .for_each(|(out, bent)| *out = bent + strength * shade * (0.4 + bent / 230.0));
            }
        }
    }

    fn fibre(&mut self, rng: &mut Rng) {
        let strength = self.strength();
        let (start, angle) = (somewhere(rng), rng.uniform_in(0.0, TAU));
        let bend = rng.uniform_in(-0.03, 0.03);
        let path = walk(rng, start, angle, bend, 0.012, (45.0, 120.0));
        let width = self.thickness() * rng.uniform_in(0.4, 0.9);
        let (sun, lift) = (rng.uniform_in(0.0, TAU), rng.uniform_in(1.2, 2.6));
        let (mut body, mut shadow) = (Layer::new(), Layer::new());
        for &(x, y) in &path {
            body.dab(x, y, width, 0.85);
            shadow.dab(x + lift * sun.cos(), y + lift * sun.sin(), width + 0.8, 0.45);
        }
        let mean = self.mean(&body);
        let level = 1.6 * strength + 10.0;
        let hue = match (self.picture.channels, rng.below(4)) {
            (3, 0) => [-1.2, -0.7, 0.3], // blue
            (3, 1) => [0.3, -1.1, -1.0], // red
            (_, 2) => [0.9; 3],
            _ => [-1.1; 3],
        };
        self.add(&shadow, [-0.6 * strength; 3]);
        blend(&mut self.picture, &body, |_, _| std::array::from_fn(|c| (mean[c] + level * hue[c]).clamp(4.0, 251.0)));
    }

    fn patch(&mut self, rng: &mut Rng) {
        let strength = self.strength();
        let centre = somewhere(rng);
        let (a, b) = (rng.uniform_in(14.0, 30.0), rng.uniform_in(12.0, 24.0));
        let (turn, noise) = (rng.uniform_in(0.0, TAU), Noise::new(rng));
        // 2 is an ellipse, 6 nearly a rectangle.
        let power = rng.uniform_in(2.0, 6.0);
        let distance = |u: f32, v: f32| {
            let (x, y) = (u - centre.0, v - centre.1);
            let (p, q) = ((x * turn.cos() + y * turn.sin()).abs() / a, (y * turn.cos() - x * turn.sin()).abs() / b);
            (p.powf(power) + q.powf(power)).powf(1.0 / power) + 0.16 * (noise.fractal(u / 12.0, v / 12.0) - 0.5)
        };
        let inside = Layer::from(|u, v| 1.0 - smooth(0.96, 1.04, distance(u, v)));
        let turned = [FRAC_PI_2, -FRAC_PI_2, FRAC_PI_4, 3.0 * FRAC_PI_4][rng.below(4)];
        // Turned, a surface without grain looks as before; at another scale it does not.
        let zoom = 1.0 + self.severity * if self.surface.grain().is_some() { 0.2 } else { 0.6 };
        let zoom = if rng.below(2) == 0 { zoom } else { 1.0 / zoom };
        let elsewhere = self.surface.view(rng);
        let source = View { angle: self.view.angle + turned, scale: self.view.scale * zoom, ..elsewhere };
        let piece = |u: usize, v: usize| {
            let (x, y) = source.place(u as f32, v as f32);
            self.surface.at(x, y)
        };
        // As bright as its surroundings but for a rest: the texture must give it away, not the exposure.
        let (mut there, mut total) = ([0.0; 3], 1e-6);
        for (i, w) in inside.0.iter().enumerate().filter(|(_, w)| **w > 0.0) {
            total += w;
            there.iter_mut().zip(piece(i % SIZE, i / SIZE)).for_each(|(sum, x)| *sum += w * x);
        }
        let here = self.mean(&inside);
        let shift: [f32; 3] = std::array::from_fn(|c| here[c] - there[c] / total - 5.0 - 0.1 * strength);
        let shifted = |u, v| {
            let texel = piece(u, v);
            std::array::from_fn(|c| texel[c] + shift[c])
        };
        blend(&mut self.picture, &inside, shifted);
        let seam = Layer::from(|u, v| (-((distance(u, v) - 1.02) / 0.06).powi(2)).exp());
        self.add(&seam, [-0.7 * strength; 3]);
    }

    /// Mean over a square of side 2 r + 1, same layout as the picture.
    fn local_mean(&self, r: usize) -> Vec<f32> {
        let channels = self.picture.channels;
        let pass = |source: &[f32], step: usize, place: fn(usize) -> usize| -> Vec<f32> {
            (0..source.len())
                .map(|i| {
                    let at = place(i / channels);
                    let (low, high) = (at.min(r), (SIZE - 1 - at).min(r));
                    let sum: f32 = (0..=low + high).map(|k| source[i - low * step + k * step]).sum();
                    sum / (low + high + 1) as f32
                })
                .collect()
        };
        let rows = pass(&self.picture.data, channels, |i| i % SIZE);
        pass(&rows, channels * SIZE, |i| i / SIZE)
    }
}

/// Moves every pixel towards `target(u, v)` by its weight.
fn blend(picture: &mut Picture, weight: &Layer, target: impl Fn(usize, usize) -> [f32; 3]) {
    for (i, &w) in weight.0.iter().enumerate().filter(|(_, w)| **w > 0.0) {
        let (u, v) = (i % SIZE, i / SIZE);
        picture.pixel_mut(u, v).iter_mut().zip(target(u, v)).for_each(|(x, t)| *x += w * (t - *x));
    }
}

/// A weight from 0 to 1 for every pixel.
struct Layer(Vec<f32>);

impl Layer {
    fn new() -> Self {
        Layer(vec![0.0; SIZE * SIZE])
    }

    fn from(weight: impl Fn(f32, f32) -> f32) -> Self {
        Layer((0..SIZE * SIZE).map(|i| weight((i % SIZE) as f32, (i / SIZE) as f32)).collect())
    }

    /// A disc with an edge one pixel soft. Overlapping dabs do not add up.
    fn dab(&mut self, x: f32, y: f32, radius: f32, opacity: f32) {
        let span = |c: f32| {
            let clip = |v: f32| v.clamp(0.0, SIZE as f32) as usize;
            clip((c - radius - 1.0).ceil())..clip((c + radius + 2.0).floor())
        };
        for v in span(y) {
            for u in span(x) {
                let d = (u as f32 - x).hypot(v as f32 - y);
                let cover = (radius + 0.5 - d).clamp(0.0, 1.0) * opacity;
                let weight = &mut self.0[v * SIZE + u];
                *weight = weight.max(cover);
            }
        }
    }
}

/// Value noise on a 16x16 torus, 0 to 1.
struct Noise([f32; 256]);

impl Noise {
    fn new(rng: &mut Rng) -> Self {
        Noise(std::array::from_fn(|_| rng.uniform()))
    }

    fn at(&self, x: f32, y: f32) -> f32 {
        let (x0, y0) = (x.floor(), y.floor());
        let lattice = |dx: i64, dy: i64| {
            let wrap = |i: f32, d: i64| ((i as i64 + d) & 15) as usize;
            self.0[wrap(y0, dy) * 16 + wrap(x0, dx)]
        };
        let (tx, ty) = (smooth(0.0, 1.0, x - x0), smooth(0.0, 1.0, y - y0));
        let row = |dy| lattice(0, dy) * (1.0 - tx) + lattice(1, dy) * tx;
        row(0) * (1.0 - ty) + row(1) * ty
    }

    /// Three octaves.
    fn fractal(&self, x: f32, y: f32) -> f32 {
        (4.0 * self.at(x, y) + 2.0 * self.at(2.0 * x + 3.0, 2.0 * y) + self.at(4.0 * x, 4.0 * y + 7.0)) / 7.0
    }
}

/// 0 below `low`, 1 above `high`, a cubic between.
fn smooth(low: f32, high: f32, x: f32) -> f32 {
    let t = ((x - low) / (high - low)).clamp(0.0, 1.0);
    t * t * (3.0 - 2.0 * t)
}

/// A place well inside the picture.
fn somewhere(rng: &mut Rng) -> (f32, f32) {
    let mut side = || rng.uniform_in(44.0, SIZE as f32 - 44.0);
    (side(), side())
}

/// A path of half-pixel steps whose middle is `middle`: it bends by `bend` radians per pixel, and the bend itself drifts
/// by a normal step of `drift`. Its length is drawn between the two of `length`.
fn walk(rng: &mut Rng, middle: (f32, f32), angle: f32, bend: f32, drift: f32, length: (f32, f32)) -> Vec<(f32, f32)> {
    const STEP: f32 = 0.5;
    let steps = (rng.uniform_in(length.0, length.1) / STEP) as usize;
    let mut half = |mut angle: f32, mut bend: f32| {
        let (mut x, mut y) = middle;
        let mut path = Vec::with_capacity(steps / 2);
        for _ in 0..steps / 2 {
            bend = 0.98 * bend + STEP * drift * rng.normal();
            angle += STEP * bend;
            x += STEP * angle.cos();
            y += STEP * angle.sin();
            path.push((x, y));
        }
        path
    };
    let mut path = half(angle + TAU / 2.0, -bend);
    path.reverse();
    path.push(middle);
    path.extend(half(angle, bend));
    path
}

/// 255 where a pixel changed noticeably, or lies in a gap of up to four pixels between such pixels; else 0.
pub fn mask(clean: &[u8], damaged: &[u8], channels: usize) -> Vec<u8> {
    let changed: Vec<bool> = clean
        .chunks_exact(channels)
        .zip(damaged.chunks_exact(channels))
        .map(|(a, b)| a.iter().zip(b).any(|(a, b)| a.abs_diff(*b) >= NOTICEABLE))
        .collect();
    // A square is a row of columns, so what lies near is found along one axis, then along the other.
    let along = |mask: &[bool], step: usize, place: fn(usize) -> usize, want: bool| -> Vec<bool> {
        let near = |i: usize| {
            let (back, ahead) = (place(i).min(CLOSE), (SIZE - 1 - place(i)).min(CLOSE));
            (0..=back + ahead).any(|k| mask[i - back * step + k * step] == want)
        };
        (0..mask.len()).map(near).collect()
    };
    let near = |mask: &[bool], want| along(&along(mask, 1, |i| i % SIZE, want), SIZE, |i| i / SIZE, true);
    let grown = near(&changed, true);
    near(&grown, false).into_iter().map(|outside| if outside { 0 } else { 255 }).collect()
}
