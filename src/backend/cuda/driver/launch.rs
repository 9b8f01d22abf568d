//! What a launch is given: its geometry, and typed memory for the kernel's parameters.

use super::pool::Buffer;
use super::tape::Parameter;
use super::tensor_map::TensorMap;
use crate::error::{Error, Result};
use cudarc::driver::sys::CUdeviceptr;
use std::marker::PhantomData;

/// Blocks, threads a block, and bytes of dynamic shared memory a block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Geometry {
    /// Blocks along x, y, z.
    pub grid: [u32; 3],
    /// Threads a block.
    pub block: u32,
    /// Bytes of dynamic shared memory a block.
    pub shared: u32,
}

impl Geometry {
    /// `grid` blocks in a row, without dynamic shared memory.
    #[must_use]
    pub const fn row(grid: u32, block: u32) -> Self {
        Self { grid: [grid, 1, 1], block, shared: 0 }
    }

    /// Blocks enough for a thread for each of `items`.
    ///
    /// # Errors
    /// [`Error::Device`] beyond the grid's limit of 2^31 - 1 blocks.
    pub fn over(items: usize, block: u32) -> Result<Self> {
        let blocks = items.div_ceil(block as usize);
        match u32::try_from(blocks) {
            Ok(grid) if grid <= i32::MAX.unsigned_abs() => Ok(Self::row(grid, block)),
            _ => Err(Error::Device {
                problem: format!("{items} elements in one launch are more than a grid has threads"),
                help: Some("use a smaller batch".into()),
            }),
        }
    }
}

/// The type of what a pointer argument points to, as CUDA C++ spells it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Element {
    /// `float`.
    F32,
    /// `bf16`.
    Bf16,
    /// `double`.
    F64,
    /// `uint32_t`.
    U32,
    /// `uint8_t`.
    U8,
}

impl Element {
    /// Bytes.
    pub(super) const fn size(self) -> usize {
        match self {
            Self::F64 => 8,
            Self::F32 | Self::U32 => 4,
            Self::Bf16 => 2,
            Self::U8 => 1,
        }
    }

    const fn name(self) -> &'static str {
        match self {
            Self::F32 => "float",
            Self::Bf16 => "bf16",
            Self::F64 => "double",
            Self::U32 => "uint32_t",
            Self::U8 => "uint8_t",
        }
    }
}

/// Memory passed to a kernel: a pointer or a tensor map in its argument list.
#[derive(Debug)]
pub struct Argument<'a> {
    pub(super) value: Value,
    buffer: PhantomData<&'a Buffer>,
}

/// Memory as it enters a kernel's parameters.
#[derive(Debug)]
pub(super) enum Value {
    Pointer { address: CUdeviceptr, element: Element, writes: bool },
    Map(Parameter),
}

impl<'a> Argument<'a> {
    /// A buffer the kernel writes.
    pub fn write(buffer: &'a mut Buffer, element: Element) -> Self {
        Self::pointer(buffer, element, true)
    }

    /// The same memory from this element on, which has to be within the buffer. A tensor map stays as it is.
    #[must_use]
    pub fn from_element(mut self, first: usize) -> Self {
        if let Value::Pointer { address, element, .. } = &mut self.value {
            *address += (first * element.size()) as u64;
        }
        self
    }

    /// A buffer the kernel only reads.
    #[must_use]
    pub fn read(buffer: &'a Buffer, element: Element) -> Self {
        Self::pointer(buffer, element, false)
    }

    /// A matrix the kernel loads boxes of.
    #[must_use]
    pub fn boxes(map: &TensorMap<'a>) -> Self {
        Self { value: Value::Map(map.parameter), buffer: PhantomData }
    }

    fn pointer(buffer: &Buffer, element: Element, writes: bool) -> Self {
        Self { value: Value::Pointer { address: buffer.block.address, element, writes }, buffer: PhantomData }
    }
}

/// The parameter list that a kernel with these arguments has, as build.rs reads it from the source.
pub(super) fn signature<S>(arguments: &[Argument<'_>]) -> String {
    let mut text = String::new();
    for argument in arguments {
        match &argument.value {
            Value::Pointer { element, writes, .. } => {
                text += if *writes { "" } else { "const " };
                text += element.name();
                text += "*, ";
            }
            Value::Map(_) => text += "TensorMap, ",
        }
    }
    let sizes = std::any::type_name::<S>();
    text + sizes.rsplit("::").next().unwrap_or(sizes)
}
