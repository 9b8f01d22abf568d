//! The ops of training behind [`Any`].

use crate::any::{Any, Matrix, Tensor};
use prunectl::error::Result;
use prunectl::ops::*;

impl Any {
    /// A tensor in f32 however the others of a test are stored: parameters' gradients always are.
    pub(crate) fn upload_f32(&self, rows: usize, cols: usize, values: &[f32]) -> Tensor {
        match self {
            Self::Cpu(b) => Tensor::Cpu(b.upload(rows, cols, values).unwrap()),
            Self::Cuda(b, _) => Tensor::Cuda(b.upload(rows, cols, values).unwrap()),
        }
    }
}

impl Fill for Any {
    fn fill(&self, y: &mut Tensor, value: f32) -> Result<()> {
        match self {
            Self::Cpu(b) => b.fill(y.cpu_mut(), value),
            Self::Cuda(b, _) => b.fill(y.cuda_mut(), value),
        }
    }
}

impl Dropout for Any {
    fn dropout(&self, args: DropoutArgs<'_, Tensor>) -> Result<()> {
        let DropoutArgs { y, x, mask } = args;
        match self {
            Self::Cpu(b) => b.dropout(DropoutArgs { y: y.cpu_mut(), x: x.cpu(), mask }),
            Self::Cuda(b, _) => b.dropout(DropoutArgs { y: y.cuda_mut(), x: x.cuda(), mask }),
        }
    }
}

impl EmbeddingBackward for Any {
    fn embedding_backward(&self, args: EmbeddingBackwardArgs<'_, Tensor>) -> Result<()> {
        let EmbeddingBackwardArgs { d_table, d_y, ids } = args;
        match self {
            Self::Cpu(b) => b.embedding_backward(EmbeddingBackwardArgs { d_table: d_table.cpu_mut(), d_y: d_y.cpu(), ids }),
            Self::Cuda(b, _) => b.embedding_backward(EmbeddingBackwardArgs { d_table: d_table.cuda_mut(), d_y: d_y.cuda(), ids }),
        }
    }
}

impl RmsNormBackward for Any {
    fn rms_norm_backward(&self, args: RmsNormBackwardArgs<'_, Tensor>) -> Result<()> {
        let RmsNormBackwardArgs { d_x, d_weight, x, weight, d_y, eps } = args;
        match self {
            Self::Cpu(b) => b.rms_norm_backward(RmsNormBackwardArgs {
                d_x: d_x.cpu_mut(),
                d_weight: d_weight.map(Tensor::cpu_mut),
                x: x.cpu(),
                weight: weight.cpu(),
                d_y: d_y.cpu(),
                eps,
            }),
            Self::Cuda(b, _) => b.rms_norm_backward(RmsNormBackwardArgs {
                d_x: d_x.cuda_mut(),
                d_weight: d_weight.map(Tensor::cuda_mut),
                x: x.cuda(),
                weight: weight.cuda(),
                d_y: d_y.cuda(),
                eps,
            }),
        }
    }
}

impl LayerNormBackward for Any {
    fn layer_norm_backward(&self, args: LayerNormBackwardArgs<'_, Tensor>) -> Result<()> {
        let LayerNormBackwardArgs { d_x, d_weight, x, weight, d_y, eps } = args;
        match self {
            Self::Cpu(b) => b.layer_norm_backward(LayerNormBackwardArgs {
                d_x: d_x.cpu_mut(),
                d_weight: d_weight.map(Tensor::cpu_mut),
                x: x.cpu(),
                weight: weight.cpu(),
                d_y: d_y.cpu(),
                eps,
            }),
            Self::Cuda(b, _) => b.layer_norm_backward(LayerNormBackwardArgs {
                d_x: d_x.cuda_mut(),
                d_weight: d_weight.map(Tensor::cuda_mut),
                x: x.cuda(),
                weight: weight.cuda(),
                d_y: d_y.cuda(),
                eps,
            }),
        }
    }

    fn head_norm_backward(&self, args: HeadNormBackwardArgs<'_, Tensor>) -> Result<()> {
        let HeadNormBackwardArgs { d, d_weight, x, weight, first_col, eps } = args;
        match self {
            Self::Cpu(b) => b.head_norm_backward(HeadNormBackwardArgs {
                d: d.cpu_mut(),
                d_weight: d_weight.map(Tensor::cpu_mut),
                x: x.cpu(),
                weight: weight.cpu(),
                first_col,
                eps,
            }),
            Self::Cuda(b, _) => b.head_norm_backward(HeadNormBackwardArgs {
                d: d.cuda_mut(),
                d_weight: d_weight.map(Tensor::cuda_mut),
                x: x.cuda(),
                weight: weight.cuda(),
                first_col,
                eps,
            }),
        }
    }
}

impl RopeBackward for Any {
    fn rope_backward(&self, args: RopeArgs<'_, Tensor>) -> Result<()> {
        let RopeArgs { x, heads, cos, sin, positions, interleaved } = args;
        match self {
            Self::Cpu(b) => {
                b.rope_backward(RopeArgs { x: x.cpu_mut(), heads, cos: cos.cpu(), sin: sin.cpu(), positions, interleaved })
            }
            Self::Cuda(b, _) => {
                b.rope_backward(RopeArgs { x: x.cuda_mut(), heads, cos: cos.cuda(), sin: sin.cuda(), positions, interleaved })
            }
        }
    }
}

impl SwigluBackward for Any {
    fn swiglu_backward(&self, args: SwigluBackwardArgs<'_, Tensor>) -> Result<()> {
        let SwigluBackwardArgs { d_gate_up, gate_up, d_y } = args;
        match self {
            Self::Cpu(b) => {
                b.swiglu_backward(SwigluBackwardArgs { d_gate_up: d_gate_up.cpu_mut(), gate_up: gate_up.cpu(), d_y: d_y.cpu() })
            }
            Self::Cuda(b, _) => b.swiglu_backward(SwigluBackwardArgs {
                d_gate_up: d_gate_up.cuda_mut(),
                gate_up: gate_up.cuda(),
                d_y: d_y.cuda(),
            }),
        }
    }
}

impl AttentionBackward for Any {
    fn attention_backward(&self, args: AttentionBackwardArgs<'_, Tensor>) -> Result<()> {
        let AttentionBackwardArgs { d_qkv, qkv, y, d_y, heads, starts, scale } = args;
        match self {
            Self::Cpu(b) => b.attention_backward(AttentionBackwardArgs {
                d_qkv: d_qkv.cpu_mut(),
                qkv: qkv.cpu(),
                y: y.cpu(),
                d_y: d_y.cpu(),
                heads,
                starts,
                scale,
            }),
            Self::Cuda(b, _) => b.attention_backward(AttentionBackwardArgs {
                d_qkv: d_qkv.cuda_mut(),
                qkv: qkv.cuda(),
                y: y.cuda(),
                d_y: d_y.cuda(),
                heads,
                starts,
                scale,
            }),
        }
    }
}

impl LinearBackward for Any {
    fn linear_backward_input(&self, args: LinearBackwardInputArgs<'_, Tensor, Matrix>) -> Result<()> {
        let LinearBackwardInputArgs { d_x, d_y, weight, accumulate } = args;
        match self {
            Self::Cpu(b) => b.linear_backward_input(LinearBackwardInputArgs {
                d_x: d_x.cpu_mut(),
                d_y: d_y.cpu(),
                weight: weight.cpu(),
                accumulate,
            }),
            Self::Cuda(b, _) => b.linear_backward_input(LinearBackwardInputArgs {
                d_x: d_x.cuda_mut(),
                d_y: d_y.cuda(),
                weight: weight.cuda(),
                accumulate,
            }),
        }
    }

    fn linear_backward_weight(&self, args: LinearBackwardWeightArgs<'_, Tensor>) -> Result<()> {
        let LinearBackwardWeightArgs { d_weight, x, d_y, first_col, scale } = args;
        match self {
            Self::Cpu(b) => b.linear_backward_weight(LinearBackwardWeightArgs {
                d_weight: d_weight.cpu_mut(),
                x: x.cpu(),
                d_y: d_y.cpu(),
                first_col,
                scale,
            }),
            Self::Cuda(b, _) => b.linear_backward_weight(LinearBackwardWeightArgs {
                d_weight: d_weight.cuda_mut(),
                x: x.cuda(),
                d_y: d_y.cuda(),
                first_col,
                scale,
            }),
        }
    }

    fn linear_backward_bias(&self, args: LinearBackwardBiasArgs<'_, Tensor>) -> Result<()> {
        let LinearBackwardBiasArgs { d_bias, d_y, first_col } = args;
        match self {
            Self::Cpu(b) => {
                b.linear_backward_bias(LinearBackwardBiasArgs { d_bias: d_bias.cpu_mut(), d_y: d_y.cpu(), first_col })
            }
            Self::Cuda(b, _) => {
                b.linear_backward_bias(LinearBackwardBiasArgs { d_bias: d_bias.cuda_mut(), d_y: d_y.cuda(), first_col })
            }
        }
    }

    fn prepare_tensors(&self, parts: &[&Tensor], direction: Direction) -> Result<Matrix> {
        match self {
            Self::Cpu(b) => b.prepare_tensors(&parts.iter().map(|t| t.cpu()).collect::<Vec<_>>(), direction).map(Matrix::Cpu),
            Self::Cuda(b, _) => {
                b.prepare_tensors(&parts.iter().map(|t| t.cuda()).collect::<Vec<_>>(), direction).map(Matrix::Cuda)
            }
        }
    }
}

/// The teacher's tensors, as one side has them.
fn told<'a, T, M>(
    distillation: Option<Distillation<'a, Tensor, Matrix>>,
    tensor: impl Fn(&'a Tensor) -> &'a T,
    matrix: impl Fn(&'a Matrix) -> &'a M,
) -> Option<Distillation<'a, T, M>> {
    let Distillation { teacher, temperature, mix } = distillation?;
    let teacher = match teacher {
        Teacher::States { x, head, logit_scale } => Teacher::States { x: tensor(x), head: matrix(head), logit_scale },
        Teacher::TopK { k, ids, log_probs } => Teacher::TopK { k, ids, log_probs },
    };
    Some(Distillation { teacher, temperature, mix })
}

impl CrossEntropyBackward for Any {
    fn cross_entropy_backward(&self, args: CrossEntropyBackwardArgs<'_, Tensor, Matrix>) -> Result<TokenLosses> {
        let CrossEntropyBackwardArgs { d_x, d_head, x, head, targets, logit_scale, scale, distillation } = args;
        match self {
            Self::Cpu(b) => b.cross_entropy_backward(CrossEntropyBackwardArgs {
                d_x: d_x.cpu_mut(),
                d_head: d_head.map(Tensor::cpu_mut),
                x: x.cpu(),
                head: head.cpu(),
                targets,
                logit_scale,
                scale,
                distillation: told(distillation, Tensor::cpu, Matrix::cpu),
            }),
            Self::Cuda(b, _) => b.cross_entropy_backward(CrossEntropyBackwardArgs {
                d_x: d_x.cuda_mut(),
                d_head: d_head.map(Tensor::cuda_mut),
                x: x.cuda(),
                head: head.cuda(),
                targets,
                logit_scale,
                scale,
                distillation: told(distillation, Tensor::cuda, Matrix::cuda),
            }),
        }
    }
}

impl Adamw for Any {
    fn adamw(&self, args: AdamwArgs<'_, Tensor>) -> Result<()> {
        let AdamwArgs { value, grad, first, second, step } = args;
        match self {
            Self::Cpu(b) => b.adamw(AdamwArgs {
                value: value.cpu_mut(),
                grad: grad.cpu(),
                first: first.cpu_mut(),
                second: second.cpu_mut(),
                step,
            }),
            Self::Cuda(b, _) => b.adamw(AdamwArgs {
                value: value.cuda_mut(),
                grad: grad.cuda(),
                first: first.cuda_mut(),
                second: second.cuda_mut(),
                step,
            }),
        }
    }

    fn squared_norm(&self, x: &Tensor) -> Result<f64> {
        match self {
            Self::Cpu(b) => b.squared_norm(x.cpu()),
            Self::Cuda(b, _) => b.squared_norm(x.cuda()),
        }
    }
}
