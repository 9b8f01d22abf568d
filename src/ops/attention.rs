//! Causal grouped-query attention over packed sequences of different lengths, without a cache.

use super::{Device, Shaped, expect};
use crate::error::{Error, Result};

/// How a fused qkv row is cut: heads * head_dim of q, then kv_heads * head_dim of k, then as many of v.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Heads {
    /// Config key `num_attention_heads`; a multiple of kv_heads.
    pub heads: usize,
    /// Config key `num_key_value_heads`. Query head h reads key head h / (heads / kv_heads).
    pub kv_heads: usize,
    /// Config key `head_dim`.
    pub head_dim: usize,
}

impl Heads {
    /// Columns of a fused qkv row.
    #[must_use]
    pub const fn qkv_cols(self) -> usize {
        (self.heads + 2 * self.kv_heads) * self.head_dim
    }

    /// Columns of q, and of the result.
    #[must_use]
    pub const fn q_cols(self) -> usize {
        self.heads * self.head_dim
    }

    /// Columns of k, and of v.
    #[must_use]
    pub const fn kv_cols(self) -> usize {
        self.kv_heads * self.head_dim
    }
}

/// Arguments of [`Attention::attention`].
#[derive(Debug)]
pub struct AttentionArgs<'a, T> {
    /// [rows, heads * head_dim], written.
    pub y: &'a mut T,
    /// [rows, qkv_cols], q and k already rotated.
    pub qkv: &'a T,
    /// How qkv is cut.
    pub heads: Heads,
    /// First row of each sequence, then the number of rows: [0, …, rows], not decreasing.
    pub starts: &'a [u32],
    /// Factor on q·k, usually 1 / sqrt(head_dim).
    pub scale: f32,
}

impl<T: Shaped> AttentionArgs<'_, T> {
    /// # Errors
    /// [`Error::Shape`].
    pub fn check(&self) -> Result<()> {
        let rows = self.qkv.rows();
        expect("attention", "qkv", self.qkv, rows, self.heads.qkv_cols())?;
        expect("attention", "y", self.y, rows, self.heads.q_cols())?;
        check_starts("attention", self.starts, rows)
    }
}

/// y = softmax(scale q k^T, causal within each sequence) v. Scores, softmax and sums in f32.
///
/// The result of a row has the same bits as [`KvCache::attention_paged`](super::KvCache::attention_paged) gives for it.
pub trait Attention: Device {
    /// See the trait.
    ///
    /// # Errors
    /// [`Error::Shape`].
    fn attention(&self, args: AttentionArgs<'_, Self::Tensor>) -> Result<()>;
}

/// Arguments of [`AttentionBackward::attention_backward`].
#[derive(Debug)]
pub struct AttentionBackwardArgs<'a, T> {
    /// [rows, qkv_cols], written: gradients of the rotated q and k, and of v.
    pub d_qkv: &'a mut T,
    /// [rows, qkv_cols], what the forward pass was given.
    pub qkv: &'a T,
    /// [rows, heads * head_dim], what it gave.
    pub y: &'a T,
    /// [rows, heads * head_dim].
    pub d_y: &'a T,
    /// How qkv is cut.
    pub heads: Heads,
    /// First row of each sequence, then the number of rows.
    pub starts: &'a [u32],
    /// Factor on q·k.
    pub scale: f32,
}

impl<T: Shaped> AttentionBackwardArgs<'_, T> {
    /// # Errors
    /// [`Error::Shape`].
    pub fn check(&self) -> Result<()> {
        let (rows, heads) = (self.qkv.rows(), self.heads);
        expect("attention_backward", "qkv", self.qkv, rows, heads.qkv_cols())?;
        expect("attention_backward", "d_qkv", self.d_qkv, rows, heads.qkv_cols())?;
        expect("attention_backward", "y", self.y, rows, heads.q_cols())?;
        expect("attention_backward", "d_y", self.d_y, rows, heads.q_cols())?;
        check_starts("attention_backward", self.starts, rows)
    }
}

/// With P = softmax(scale q k^T), computed again block by block (Dao et al. 2022, arXiv 2205.14135), and D = sum over columns of
/// d_y y: dS = P (d_y v^T - D) scale; d_q = dS k; d_k = dS^T q; d_v = P^T d_y, the last two summed over the query heads that read
/// a key head, in their order. f32.
pub trait AttentionBackward: Device {
    /// See the trait.
    ///
    /// # Errors
    /// [`Error::Shape`].
    fn attention_backward(&self, args: AttentionBackwardArgs<'_, Self::Tensor>) -> Result<()>;
}

/// `Err(Shape)` unless `starts` goes from 0 to `rows` without decreasing.
fn check_starts(op: &'static str, starts: &[u32], rows: usize) -> Result<()> {
    let ends_right = starts.first() == Some(&0) && starts.last().map(|&s| s as usize) == Some(rows);
    if ends_right && starts.is_sorted() {
        return Ok(());
    }
    let found: Vec<usize> = starts.iter().map(|&s| s as usize).collect();
    Err(Error::shape(op, "starts", &[0, rows], &found))
}
