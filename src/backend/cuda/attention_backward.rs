//! Launches of kernels/attention_backward.cu and kernels/attention_backward_mma.cu.

use super::attention::{MOST_HEAD_DIM, sizes, tiles, too_wide};
use super::driver::{Argument, Element, Geometry};
use super::kernels::Kernel;
use super::{CudaBackend, Storage, Tensor, kernel_of, kernels, size};
use crate::error::Result;
use crate::ops::{AttentionBackward, AttentionBackwardArgs};

const OP: &str = "attention_backward";

/// f32s kept of each row and head between the two kernels, KEPT of the kernels.
const KEPT: usize = 2;

/// How one of the two kernels runs.
struct Launch {
    kernel: Kernel,
    block: u32,
    shared: u32,
}

/// The two kernels for heads of one size, and how many queries, or keys, a block has of its own.
struct Plan {
    queries: Launch,
    keys: Launch,
    own: usize,
}

/// QueryTiles and KeyTiles of kernels/attention_backward_mma.cu: heads of up to `width`, rows of the other side at a time, warps
/// that share 16 own rows.
fn mma(width: usize, queries: (Kernel, usize), keys: (Kernel, usize, u32)) -> Result<Plan> {
    const OWN: usize = 64;
    let shared = |others: usize| size(OP, "head_dim", (2 * OWN + 4 * others) * (width + 8) * 2);
    Ok(Plan {
        queries: Launch { kernel: queries.0, block: 128, shared: shared(queries.1)? },
        keys: Launch { kernel: keys.0, block: 128 * keys.2, shared: shared(keys.1)? },
        own: OWN,
    })
}

/// kernels/attention_backward.cu: a warp an own row, 32 of the other side at a time with a column more.
fn simt(queries: Kernel, keys: Kernel, head_dim: usize) -> Result<Plan> {
    const OWN: usize = 8;
    let shared = size(OP, "head_dim", (2 * 32 * (head_dim + 1) + 2 * OWN * head_dim) * size_of::<f32>())?;
    let launch = |kernel| Launch { kernel, block: 256, shared };
    Ok(Plan { queries: launch(queries), keys: launch(keys), own: OWN })
}

fn plan(storage: Storage, head_dim: usize) -> Result<Plan> {
    use kernels::{
        ATTENTION_BACKWARD_KEYS_BF16, ATTENTION_BACKWARD_KEYS_F32, ATTENTION_BACKWARD_KEYS_MMA_64,
        ATTENTION_BACKWARD_KEYS_MMA_96, ATTENTION_BACKWARD_KEYS_MMA_128, ATTENTION_BACKWARD_KEYS_MMA_256,
        ATTENTION_BACKWARD_QUERIES_BF16, ATTENTION_BACKWARD_QUERIES_F32, ATTENTION_BACKWARD_QUERIES_MMA_64,
        ATTENTION_BACKWARD_QUERIES_MMA_96, ATTENTION_BACKWARD_QUERIES_MMA_128, ATTENTION_BACKWARD_QUERIES_MMA_256,
    };
    match (storage, head_dim) {
        (_, MOST_HEAD_DIM..) if head_dim > MOST_HEAD_DIM => Err(too_wide(OP, head_dim)),
        (Storage::F32, _) => simt(ATTENTION_BACKWARD_QUERIES_F32, ATTENTION_BACKWARD_KEYS_F32, head_dim),
        // Rows of heads that 16-byte copies cannot reach.
        (Storage::Bf16, _) if !head_dim.is_multiple_of(8) => {
            simt(ATTENTION_BACKWARD_QUERIES_BF16, ATTENTION_BACKWARD_KEYS_BF16, head_dim)
        }
        (Storage::Bf16, ..=64) => mma(64, (ATTENTION_BACKWARD_QUERIES_MMA_64, 64), (ATTENTION_BACKWARD_KEYS_MMA_64, 64, 1)),
        (Storage::Bf16, ..=96) => mma(96, (ATTENTION_BACKWARD_QUERIES_MMA_96, 32), (ATTENTION_BACKWARD_KEYS_MMA_96, 32, 1)),
        (Storage::Bf16, ..=128) => mma(128, (ATTENTION_BACKWARD_QUERIES_MMA_128, 32), (ATTENTION_BACKWARD_KEYS_MMA_128, 16, 1)),
        (Storage::Bf16, _) => mma(256, (ATTENTION_BACKWARD_QUERIES_MMA_256, 16), (ATTENTION_BACKWARD_KEYS_MMA_256, 16, 2)),
    }
}

impl AttentionBackward for CudaBackend {
    fn attention_backward(&self, args: AttentionBackwardArgs<'_, Tensor>) -> Result<()> {
        args.check()?;
        let AttentionBackwardArgs { d_qkv, qkv, y, d_y, heads, starts, scale } = args;
        let Plan { queries, keys, own } = plan(qkv.storage, heads.head_dim)?;
        kernel_of(OP, qkv.storage, &[d_qkv.storage, y.storage, d_y.storage], Some(queries.kernel), Some(queries.kernel))?;
        let tiles = tiles(starts, own)?;
        let count = tiles.len() / 4;
        let tiles = self.indices.get(&self.gpu, &tiles)?;
        let sizes = sizes(heads, scale, count, 1)?;
        let mut kept = self.gpu.allocate(qkv.rows * heads.heads * KEPT * size_of::<f32>())?;
        let geometry = |launch: &Launch, heads: usize| -> Result<Geometry> {
            Ok(Geometry { shared: launch.shared, ..Geometry::row(size(OP, "rows", count * heads)?, launch.block) })
        };
        let arguments = [d_qkv.write(), Argument::write(&mut kept, Element::F32), qkv.read(), y.read(), d_y.read(), tiles.read()];
        self.gpu.launch(queries.kernel, geometry(&queries, heads.heads)?, &arguments, sizes)?;
        let arguments = [d_qkv.write(), Argument::read(&kept, Element::F32), qkv.read(), d_y.read(), tiles.read()];
        self.gpu.launch(keys.kernel, geometry(&keys, heads.kv_heads)?, &arguments, sizes)
    }
}
