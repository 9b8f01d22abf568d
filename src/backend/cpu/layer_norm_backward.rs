//! Gradient of LayerNorm over rows and over heads. Rows give d_x; then column ranges give d_weight, each a chain over all rows.

use super::layer_norm::statistics;
use super::rms_norm_backward::WEIGHT_COLUMNS;
use super::simd::{Kernel, LANES, Simd};
use super::{CpuBackend, Tensor};
use crate::error::Result;
use crate::ops::{HeadNormBackwardArgs, LayerNormBackward, LayerNormBackwardArgs, Shaped};

/// (mean, 1 / standard deviation) of one row or head.
type Statistics = (f32, f32);

/// mean(g) and mean(g n) with g = w d_y, n = (x - mean) inv_std.
#[inline(always)]
fn means<S: Simd>(s: S, x: &[f32], d_y: &[f32], weight: &[f32], (mean, inv_std): Statistics) -> (f32, f32) {
    let (mut sum, mut products) = (s.splat(0.0), s.splat(0.0));
    for ((x, d_y), w) in x.chunks(LANES).zip(d_y.chunks(LANES)).zip(weight.chunks(LANES)) {
        let g = s.mul(s.load_part(d_y, 0.0), s.load_part(w, 0.0));
        let n = s.mul(s.sub(s.load_part(x, mean), s.splat(mean)), s.splat(inv_std));
        sum = s.add(sum, g);
        products = s.fma(g, n, products);
    }
    (s.sum(sum) / x.len() as f32, s.sum(products) / x.len() as f32)
}

struct Rows<'a> {
    d_x: &'a mut [f32],
    statistics: &'a mut [Statistics],
    x: &'a [f32],
    d_y: &'a [f32],
    weight: &'a [f32],
    eps: f32,
}

impl Kernel for Rows<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let cols = self.weight.len();
        let rows = self.x.chunks_exact(cols).zip(self.d_y.chunks_exact(cols));
        for ((d_x, (x, d_y)), kept) in self.d_x.chunks_exact_mut(cols).zip(rows).zip(self.statistics) {
            *kept = statistics(s, x, self.eps);
            let (mean, inv_std) = *kept;
            let (mean_g, mean_gn) = means(s, x, d_y, self.weight, *kept);
            for (((d_x, &x), &d_y), &w) in d_x.iter_mut().zip(x).zip(d_y).zip(self.weight) {
                *d_x += inv_std * (w * d_y - mean_g - (x - mean) * inv_std * mean_gn);
            }
        }
    }
}

/// Rows of heads: d becomes d_x in place.
struct HeadsInPlace<'a> {
    d: &'a mut [f32],
    /// [rows][heads].
    statistics: &'a [Statistics],
    x: &'a [f32],
    cols: usize,
    first_col: usize,
    head_dim: usize,
    weight: &'a [f32],
}

impl Kernel for HeadsInPlace<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let heads = self.weight.len() / self.head_dim;
        let rows = self.d.chunks_exact_mut(self.cols).zip(self.x.chunks_exact(self.cols));
        for ((d, x), kept) in rows.zip(self.statistics.chunks_exact(heads)) {
            let (d, x) = (&mut d[self.first_col..], &x[self.first_col..]);
            let parts = d.chunks_exact_mut(self.head_dim).zip(x.chunks_exact(self.head_dim));
            for (((d, x), w), &(mean, inv_std)) in parts.zip(self.weight.chunks_exact(self.head_dim)).zip(kept) {
                let (mean_g, mean_gn) = means(s, x, d, w, (mean, inv_std));
                for ((d, &x), &w) in d.iter_mut().zip(x).zip(w) {
                    *d = inv_std * (w * *d - mean_g - (x - mean) * inv_std * mean_gn);
                }
            }
        }
    }
}

struct HeadStatistics<'a> {
    out: &'a mut [Statistics],
    x: &'a [f32],
    cols: usize,
    first_col: usize,
    head_dim: usize,
    heads: usize,
    eps: f32,
}

impl Kernel for HeadStatistics<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        for (x, out) in self.x.chunks_exact(self.cols).zip(self.out.chunks_exact_mut(self.heads)) {
            for (x, out) in x[self.first_col..].chunks_exact(self.head_dim).zip(out) {
                *out = statistics(s, x, self.eps);
            }
        }
    }
}

/// d_weight of columns first .. first + d_weight.len() of x; the statistics are those at [row * stride + index].
struct Columns<'a> {
    d_weight: &'a mut [f32],
    first: usize,
    cols: usize,
    x: &'a [f32],
    d_y: &'a [f32],
    statistics: &'a [Statistics],
    stride: usize,
    index: usize,
}

impl Kernel for Columns<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, _s: S) {
        let mut sums = [0.0_f32; WEIGHT_COLUMNS];
        let width = self.d_weight.len().min(WEIGHT_COLUMNS);
        let rows = self.x.chunks_exact(self.cols).zip(self.d_y.chunks_exact(self.cols));
        for ((x, d_y), kept) in rows.zip(self.statistics.chunks_exact(self.stride)) {
            let (mean, inv_std) = kept[self.index];
            let (x, d_y) = (&x[self.first..][..width], &d_y[self.first..][..width]);
            for ((sum, &x), &d_y) in sums.iter_mut().zip(x).zip(d_y) {
                *sum += d_y * ((x - mean) * inv_std);
            }
        }
        self.d_weight.iter_mut().zip(sums).for_each(|(d, sum)| *d += sum);
    }
}

impl LayerNormBackward for CpuBackend {
    fn layer_norm_backward(&self, args: LayerNormBackwardArgs<'_, Tensor>) -> Result<()> {
        args.check()?;
        let LayerNormBackwardArgs { d_x, d_weight, x, weight, d_y, eps } = args;
        let (rows, cols) = (x.rows(), x.cols());
        if rows == 0 || cols == 0 {
            return Ok(());
        }
        let mut statistics = vec![(0.0, 0.0); rows];
        let per_task = self.pool.rows_per_task(rows, cols);
        let parts = d_x.data.chunks_mut(cols * per_task).zip(statistics.chunks_mut(per_task));
        self.pool.each(parts, |index, (d_x, statistics)| {
            let range = index * per_task * cols..index * per_task * cols + d_x.len();
            let (x, d_y) = (&x.data[range.clone()], &d_y.data[range]);
            self.isa.run(Rows { d_x, statistics, x, d_y, weight: &weight.data, eps });
        });
        if let Some(d_weight) = d_weight {
            self.pool.each(d_weight.data.chunks_mut(WEIGHT_COLUMNS), |index, d_weight| {
                let (x, d_y, statistics) = (&x.data[..], &d_y.data[..], &statistics[..]);
                let first = index * WEIGHT_COLUMNS;
                self.isa.run(Columns { d_weight, first, cols, x, d_y, statistics, stride: 1, index: 0 });
            });
        }
        Ok(())
    }

    fn head_norm_backward(&self, args: HeadNormBackwardArgs<'_, Tensor>) -> Result<()> {
        args.check()?;
        let HeadNormBackwardArgs { d, d_weight, x, weight, first_col, eps } = args;
        let (rows, cols, heads, head_dim) = (d.rows(), d.cols(), weight.rows(), weight.cols());
        if rows == 0 || heads == 0 || head_dim == 0 {
            return Ok(());
        }
        let mut statistics = vec![(0.0, 0.0); rows * heads];
        let per_task = self.pool.rows_per_task(rows, weight.data.len());
        self.pool.chunks(&mut statistics, per_task * heads, |first, out| {
            let x = &x.data[first / heads * cols..];
            self.isa.run(HeadStatistics { out, x, cols, first_col, head_dim, heads, eps });
        });
        // Before d is overwritten.
        if let Some(d_weight) = d_weight {
            let parts = d_weight.data.chunks_mut(head_dim).enumerate().flat_map(|(head, part)| {
                part.chunks_mut(WEIGHT_COLUMNS).enumerate().map(move |(index, part)| (head, index * WEIGHT_COLUMNS, part))
            });
            self.pool.each(parts, |_, (head, offset, d_weight)| {
                let (x, d_y, statistics) = (&x.data[..], &d.data[..], &statistics[..]);
                let first = first_col + head * head_dim + offset;
                self.isa.run(Columns { d_weight, first, cols, x, d_y, statistics, stride: heads, index: head });
            });
        }
        self.pool.chunks(&mut d.data, cols * per_task, |first, d| {
            let row = first / cols;
            let (x, statistics) = (&x.data[first..][..d.len()], &statistics[row * heads..]);
            self.isa.run(HeadsInPlace { d, statistics, x, cols, first_col, head_dim, weight: &weight.data });
        });
        Ok(())
    }
}
