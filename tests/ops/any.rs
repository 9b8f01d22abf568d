//! Every backend behind one type, so that one test runs on all of them: closures cannot be generic over backends.

use prunectl::backend::cpu::{self, CpuBackend};
use prunectl::backend::cuda::{self, CudaBackend};
use prunectl::error::Result;
use prunectl::ops::*;
use prunectl::quant::Nf4Tensor;
use prunectl::tensor::{Dtype, HostTensor};

/// How tensors that a test uploads or clears are stored on the GPU.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stored {
    /// As the backend likes it: f32.
    Plain,
    /// As what lives within a layer: in the dtype matrices are multiplied in.
    Scratch,
}

pub(crate) enum Any {
    Cpu(CpuBackend),
    Cuda(Box<CudaBackend>, Stored),
}

#[derive(Debug)]
pub(crate) enum Tensor {
    Cpu(cpu::Tensor),
    Cuda(cuda::Tensor),
}

#[derive(Debug)]
pub(crate) enum Matrix {
    Cpu(cpu::Matrix),
    Cuda(cuda::Matrix),
}

pub(crate) enum KvPages {
    Cpu(cpu::KvPages),
    Cuda(cuda::KvPages),
}

macro_rules! sides {
    ($of:ident) => {
        impl $of {
            pub(crate) fn cpu(&self) -> &cpu::$of {
                match self {
                    Self::Cpu(it) => it,
                    Self::Cuda(_) => panic!("of another backend"),
                }
            }

            pub(crate) fn cuda(&self) -> &cuda::$of {
                match self {
                    Self::Cuda(it) => it,
                    Self::Cpu(_) => panic!("of another backend"),
                }
            }

            #[allow(dead_code, reason = "weights are only read")]
            pub(crate) fn cpu_mut(&mut self) -> &mut cpu::$of {
                match self {
                    Self::Cpu(it) => it,
                    Self::Cuda(_) => panic!("of another backend"),
                }
            }

            #[allow(dead_code, reason = "weights are only read")]
            pub(crate) fn cuda_mut(&mut self) -> &mut cuda::$of {
                match self {
                    Self::Cuda(it) => it,
                    Self::Cpu(_) => panic!("of another backend"),
                }
            }
        }
    };
}

sides!(Tensor);
sides!(Matrix);
sides!(KvPages);

impl Shaped for Tensor {
    fn rows(&self) -> usize {
        match self {
            Self::Cpu(it) => it.rows(),
            Self::Cuda(it) => it.rows(),
        }
    }

    fn cols(&self) -> usize {
        match self {
            Self::Cpu(it) => it.cols(),
            Self::Cuda(it) => it.cols(),
        }
    }
}

impl Shaped for Matrix {
    fn rows(&self) -> usize {
        match self {
            Self::Cpu(it) => it.rows(),
            Self::Cuda(it) => it.rows(),
        }
    }

    fn cols(&self) -> usize {
        match self {
            Self::Cpu(it) => it.cols(),
            Self::Cuda(it) => it.cols(),
        }
    }
}

impl Device for Any {
    type Tensor = Tensor;
    type Matrix = Matrix;

    fn name(&self) -> String {
        match self {
            Self::Cpu(b) => b.name(),
            Self::Cuda(b, stored) => format!("{} {stored:?}", b.name()),
        }
    }

    fn compute_dtype(&self) -> Dtype {
        match self {
            Self::Cpu(b) => b.compute_dtype(),
            Self::Cuda(b, _) => b.compute_dtype(),
        }
    }

    fn zeros(&self, rows: usize, cols: usize) -> Result<Tensor> {
        match self {
            Self::Cpu(b) => b.zeros(rows, cols).map(Tensor::Cpu),
            Self::Cuda(b, Stored::Plain) => b.zeros(rows, cols).map(Tensor::Cuda),
            Self::Cuda(b, Stored::Scratch) => b.scratch(rows, cols).map(Tensor::Cuda),
        }
    }

    fn scratch(&self, rows: usize, cols: usize) -> Result<Tensor> {
        match self {
            Self::Cpu(b) => b.scratch(rows, cols).map(Tensor::Cpu),
            Self::Cuda(b, _) => b.scratch(rows, cols).map(Tensor::Cuda),
        }
    }

    fn scratch_dtype(&self) -> Dtype {
        match self {
            Self::Cpu(b) => b.scratch_dtype(),
            Self::Cuda(b, _) => b.scratch_dtype(),
        }
    }

    fn resize(&self, tensor: &mut Tensor, rows: usize, cols: usize) -> Result<()> {
        match self {
            Self::Cpu(b) => b.resize(tensor.cpu_mut(), rows, cols),
            Self::Cuda(b, _) => b.resize(tensor.cuda_mut(), rows, cols),
        }
    }

    fn upload(&self, rows: usize, cols: usize, values: &[f32]) -> Result<Tensor> {
        match self {
            Self::Cpu(b) => b.upload(rows, cols, values).map(Tensor::Cpu),
            Self::Cuda(b, stored) => {
                let uploaded = b.upload(rows, cols, values)?;
                if *stored == Stored::Plain {
                    return Ok(Tensor::Cuda(uploaded));
                }
                let mut tensor = b.scratch(rows, cols)?;
                b.copy(&mut tensor, &uploaded)?;
                Ok(Tensor::Cuda(tensor))
            }
        }
    }

    fn download(&self, tensor: &Tensor) -> Result<Vec<f32>> {
        match self {
            Self::Cpu(b) => b.download(tensor.cpu()),
            Self::Cuda(b, _) => b.download(tensor.cuda()),
        }
    }

    fn copy(&self, y: &mut Tensor, x: &Tensor) -> Result<()> {
        match self {
            Self::Cpu(b) => b.copy(y.cpu_mut(), x.cpu()),
            Self::Cuda(b, _) => b.copy(y.cuda_mut(), x.cuda()),
        }
    }

    fn prepare(&self, parts: &[HostTensor]) -> Result<Matrix> {
        match self {
            Self::Cpu(b) => b.prepare(parts).map(Matrix::Cpu),
            Self::Cuda(b, _) => b.prepare(parts).map(Matrix::Cuda),
        }
    }

    fn make_ready(&self, weight: &Matrix) -> Result<()> {
        match self {
            Self::Cpu(b) => b.make_ready(weight.cpu()),
            Self::Cuda(b, _) => b.make_ready(weight.cuda()),
        }
    }

    fn tensor_bytes(&self, rows: usize, cols: usize) -> u64 {
        match self {
            Self::Cpu(b) => b.tensor_bytes(rows, cols),
            Self::Cuda(b, _) => b.tensor_bytes(rows, cols),
        }
    }

    fn batch_rows(&self) -> usize {
        match self {
            Self::Cpu(b) => b.batch_rows(),
            Self::Cuda(b, _) => b.batch_rows(),
        }
    }

    fn free_memory(&self) -> Result<Option<u64>> {
        match self {
            Self::Cpu(b) => b.free_memory(),
            Self::Cuda(b, _) => b.free_memory(),
        }
    }

    fn peak_memory(&self) -> Option<u64> {
        match self {
            Self::Cpu(b) => b.peak_memory(),
            Self::Cuda(b, _) => b.peak_memory(),
        }
    }

    fn energy_joules(&self) -> Option<f64> {
        match self {
            Self::Cpu(b) => b.energy_joules(),
            Self::Cuda(b, _) => b.energy_joules(),
        }
    }
}

impl Embedding for Any {
    fn embedding(&self, args: EmbeddingArgs<'_, Tensor, Matrix>) -> Result<()> {
        let EmbeddingArgs { y, table, ids } = args;
        match self {
            Self::Cpu(b) => b.embedding(EmbeddingArgs { y: y.cpu_mut(), table: table.cpu(), ids }),
            Self::Cuda(b, _) => b.embedding(EmbeddingArgs { y: y.cuda_mut(), table: table.cuda(), ids }),
        }
    }
}

impl Linear for Any {
    fn linear(&self, args: LinearArgs<'_, Tensor, Matrix>) -> Result<()> {
        let LinearArgs { y, x, weight, bias, accumulate } = args;
        match self {
            Self::Cpu(b) => {
                b.linear(LinearArgs { y: y.cpu_mut(), x: x.cpu(), weight: weight.cpu(), bias: bias.map(|t| t.cpu()), accumulate })
            }
            Self::Cuda(b, _) => b.linear(LinearArgs {
                y: y.cuda_mut(),
                x: x.cuda(),
                weight: weight.cuda(),
                bias: bias.map(|t| t.cuda()),
                accumulate,
            }),
        }
    }
}

impl Nf4 for Any {
    fn prepare_nf4(&self, parts: &[Nf4Tensor]) -> Result<Matrix> {
        match self {
            Self::Cpu(b) => b.prepare_nf4(parts).map(Matrix::Cpu),
            Self::Cuda(b, _) => b.prepare_nf4(parts).map(Matrix::Cuda),
        }
    }
}

impl RmsNorm for Any {
    fn rms_norm(&self, args: RmsNormArgs<'_, Tensor>) -> Result<()> {
        let RmsNormArgs { y, x, weight, eps } = args;
        match self {
            Self::Cpu(b) => b.rms_norm(RmsNormArgs { y: y.cpu_mut(), x: x.cpu(), weight: weight.cpu(), eps }),
            Self::Cuda(b, _) => b.rms_norm(RmsNormArgs { y: y.cuda_mut(), x: x.cuda(), weight: weight.cuda(), eps }),
        }
    }
}

impl LayerNorm for Any {
    fn layer_norm(&self, args: LayerNormArgs<'_, Tensor>) -> Result<()> {
        let LayerNormArgs { y, x, weight, eps } = args;
        match self {
            Self::Cpu(b) => b.layer_norm(LayerNormArgs { y: y.cpu_mut(), x: x.cpu(), weight: weight.cpu(), eps }),
            Self::Cuda(b, _) => b.layer_norm(LayerNormArgs { y: y.cuda_mut(), x: x.cuda(), weight: weight.cuda(), eps }),
        }
    }

    fn head_norm(&self, args: HeadNormArgs<'_, Tensor>) -> Result<()> {
        let HeadNormArgs { x, weight, first_col, eps } = args;
        match self {
            Self::Cpu(b) => b.head_norm(HeadNormArgs { x: x.cpu_mut(), weight: weight.cpu(), first_col, eps }),
            Self::Cuda(b, _) => b.head_norm(HeadNormArgs { x: x.cuda_mut(), weight: weight.cuda(), first_col, eps }),
        }
    }
}

impl Rope for Any {
    fn rope(&self, args: RopeArgs<'_, Tensor>) -> Result<()> {
        let RopeArgs { x, heads, cos, sin, positions, interleaved } = args;
        match self {
            Self::Cpu(b) => b.rope(RopeArgs { x: x.cpu_mut(), heads, cos: cos.cpu(), sin: sin.cpu(), positions, interleaved }),
            Self::Cuda(b, _) => {
                b.rope(RopeArgs { x: x.cuda_mut(), heads, cos: cos.cuda(), sin: sin.cuda(), positions, interleaved })
            }
        }
    }
}

impl Attention for Any {
    fn attention(&self, args: AttentionArgs<'_, Tensor>) -> Result<()> {
        let AttentionArgs { y, qkv, heads, starts, scale } = args;
        match self {
            Self::Cpu(b) => b.attention(AttentionArgs { y: y.cpu_mut(), qkv: qkv.cpu(), heads, starts, scale }),
            Self::Cuda(b, _) => b.attention(AttentionArgs { y: y.cuda_mut(), qkv: qkv.cuda(), heads, starts, scale }),
        }
    }
}

impl LinearSwiglu for Any {
    fn linear_swiglu(&self, args: LinearSwigluArgs<'_, Tensor, Matrix>) -> Result<()> {
        let LinearSwigluArgs { y, gate_up, x, weight, bias } = args;
        match self {
            Self::Cpu(b) => b.linear_swiglu(LinearSwigluArgs {
                y: y.cpu_mut(),
                gate_up: gate_up.cpu_mut(),
                x: x.cpu(),
                weight: weight.cpu(),
                bias: bias.map(|t| t.cpu()),
            }),
            Self::Cuda(b, _) => b.linear_swiglu(LinearSwigluArgs {
                y: y.cuda_mut(),
                gate_up: gate_up.cuda_mut(),
                x: x.cuda(),
                weight: weight.cuda(),
                bias: bias.map(|t| t.cuda()),
            }),
        }
    }
}

impl Swiglu for Any {
    fn swiglu(&self, args: SwigluArgs<'_, Tensor>) -> Result<()> {
        let SwigluArgs { y, gate_up } = args;
        match self {
            Self::Cpu(b) => b.swiglu(SwigluArgs { y: y.cpu_mut(), gate_up: gate_up.cpu() }),
            Self::Cuda(b, _) => b.swiglu(SwigluArgs { y: y.cuda_mut(), gate_up: gate_up.cuda() }),
        }
    }
}

impl CrossEntropy for Any {
    fn cross_entropy(&self, args: CrossEntropyArgs<'_, Tensor, Matrix>) -> Result<TokenLosses> {
        let CrossEntropyArgs { x, head, targets, logit_scale, reference } = args;
        match self {
            Self::Cpu(b) => b.cross_entropy(CrossEntropyArgs {
                x: x.cpu(),
                head: head.cpu(),
                targets,
                logit_scale,
                reference: reference.map(|t| t.cpu()),
            }),
            Self::Cuda(b, _) => b.cross_entropy(CrossEntropyArgs {
                x: x.cuda(),
                head: head.cuda(),
                targets,
                logit_scale,
                reference: reference.map(|t| t.cuda()),
            }),
        }
    }
}

impl Argmax for Any {
    fn argmax(&self, args: ArgmaxArgs<'_, Tensor, Matrix>) -> Result<Vec<u32>> {
        let ArgmaxArgs { x, head, logit_scale } = args;
        match self {
            Self::Cpu(b) => b.argmax(ArgmaxArgs { x: x.cpu(), head: head.cpu(), logit_scale }),
            Self::Cuda(b, _) => b.argmax(ArgmaxArgs { x: x.cuda(), head: head.cuda(), logit_scale }),
        }
    }
}

impl BlockInfluence for Any {
    fn block_influence(&self, args: BlockInfluenceArgs<'_, Tensor>) -> Result<Vec<f64>> {
        let BlockInfluenceArgs { before, after } = args;
        match self {
            Self::Cpu(b) => b.block_influence(BlockInfluenceArgs { before: before.cpu(), after: after.cpu() }),
            Self::Cuda(b, _) => b.block_influence(BlockInfluenceArgs { before: before.cuda(), after: after.cuda() }),
        }
    }
}

impl Rows for Any {
    fn gather_rows(&self, args: GatherRowsArgs<'_, Tensor>) -> Result<()> {
        let GatherRowsArgs { y, x, rows } = args;
        match self {
            Self::Cpu(b) => b.gather_rows(GatherRowsArgs { y: y.cpu_mut(), x: x.cpu(), rows }),
            Self::Cuda(b, _) => b.gather_rows(GatherRowsArgs { y: y.cuda_mut(), x: x.cuda(), rows }),
        }
    }

    fn scatter_rows(&self, args: ScatterRowsArgs<'_, Tensor>) -> Result<()> {
        let ScatterRowsArgs { y, x, rows } = args;
        match self {
            Self::Cpu(b) => b.scatter_rows(ScatterRowsArgs { y: y.cpu_mut(), x: x.cpu(), rows }),
            Self::Cuda(b, _) => b.scatter_rows(ScatterRowsArgs { y: y.cuda_mut(), x: x.cuda(), rows }),
        }
    }
}

impl Cols for Any {
    fn add_cols(&self, args: AddColsArgs<'_, Tensor>) -> Result<()> {
        let AddColsArgs { y, x, first_col, scale } = args;
        match self {
            Self::Cpu(b) => b.add_cols(AddColsArgs { y: y.cpu_mut(), x: x.cpu(), first_col, scale }),
            Self::Cuda(b, _) => b.add_cols(AddColsArgs { y: y.cuda_mut(), x: x.cuda(), first_col, scale }),
        }
    }

    fn take_cols(&self, args: TakeColsArgs<'_, Tensor>) -> Result<()> {
        let TakeColsArgs { y, x, first_col } = args;
        match self {
            Self::Cpu(b) => b.take_cols(TakeColsArgs { y: y.cpu_mut(), x: x.cpu(), first_col }),
            Self::Cuda(b, _) => b.take_cols(TakeColsArgs { y: y.cuda_mut(), x: x.cuda(), first_col }),
        }
    }
}

impl KvCache for Any {
    type KvPages = KvPages;

    fn kv_pages(&self, pages: usize, heads: Heads) -> Result<KvPages> {
        match self {
            Self::Cpu(b) => b.kv_pages(pages, heads).map(KvPages::Cpu),
            Self::Cuda(b, _) => b.kv_pages(pages, heads).map(KvPages::Cuda),
        }
    }

    fn kv_grow(&self, pool: &mut KvPages, pages: usize) -> Result<()> {
        match self {
            Self::Cpu(b) => b.kv_grow(pool.cpu_mut(), pages),
            Self::Cuda(b, _) => b.kv_grow(pool.cuda_mut(), pages),
        }
    }

    fn kv_expect(&self, pool: &mut KvPages, pages: usize) {
        match self {
            Self::Cpu(b) => b.kv_expect(pool.cpu_mut(), pages),
            Self::Cuda(b, _) => b.kv_expect(pool.cuda_mut(), pages),
        }
    }

    fn kv_page_bytes(&self, heads: Heads) -> u64 {
        match self {
            Self::Cpu(b) => b.kv_page_bytes(heads),
            Self::Cuda(b, _) => b.kv_page_bytes(heads),
        }
    }

    fn kv_copy_page(&self, pool: &mut KvPages, from: u32, to: u32) -> Result<()> {
        match self {
            Self::Cpu(b) => b.kv_copy_page(pool.cpu_mut(), from, to),
            Self::Cuda(b, _) => b.kv_copy_page(pool.cuda_mut(), from, to),
        }
    }

    fn kv_write(&self, args: KvWriteArgs<'_, Tensor, KvPages>) -> Result<()> {
        let KvWriteArgs { pages, rope: RopeArgs { x, heads: rotated, cos, sin, positions, interleaved }, heads, slots } = args;
        match self {
            Self::Cpu(b) => {
                let (x, cos, sin) = (x.cpu_mut(), cos.cpu(), sin.cpu());
                let rope = RopeArgs { x, heads: rotated, cos, sin, positions, interleaved };
                b.kv_write(KvWriteArgs { pages: pages.cpu_mut(), rope, heads, slots })
            }
            Self::Cuda(b, _) => {
                let (x, cos, sin) = (x.cuda_mut(), cos.cuda(), sin.cuda());
                let rope = RopeArgs { x, heads: rotated, cos, sin, positions, interleaved };
                b.kv_write(KvWriteArgs { pages: pages.cuda_mut(), rope, heads, slots })
            }
        }
    }

    fn attention_paged(&self, args: AttentionPagedArgs<'_, Tensor, KvPages>) -> Result<()> {
        let AttentionPagedArgs { y, qkv, heads, pages, rows, scale } = args;
        match self {
            Self::Cpu(b) => {
                b.attention_paged(AttentionPagedArgs { y: y.cpu_mut(), qkv: qkv.cpu(), heads, pages: pages.cpu(), rows, scale })
            }
            Self::Cuda(b, _) => b.attention_paged(AttentionPagedArgs {
                y: y.cuda_mut(),
                qkv: qkv.cuda(),
                heads,
                pages: pages.cuda(),
                rows,
                scale,
            }),
        }
    }
}
