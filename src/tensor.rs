//! Tensors as files hold them: a name, a dtype, a shape and bytes that live in a mapped file. Nothing is converted here.

use half::{bf16, f16};
use memmap2::Mmap;
#[cfg(unix)]
use memmap2::UncheckedAdvice;
use std::fmt;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;

/// Element types a model folder may hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Dtype {
    /// IEEE binary32.
    F32,
    /// IEEE binary16.
    F16,
    /// bfloat16: binary32 without its lower 16 bits.
    Bf16,
}

impl Dtype {
    /// Bytes an element.
    #[must_use]
    pub const fn size(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::Bf16 => 2,
        }
    }
}

impl fmt::Display for Dtype {
    /// As prunectl's JSON and flags spell it: `f32`, `f16`, `bf16`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::F32 => "f32",
            Self::F16 => "f16",
            Self::Bf16 => "bf16",
        })
    }
}

/// A range of bytes that keeps its owner (a mapped file, a vector) alive.
#[derive(Clone)]
pub struct SharedBytes {
    owner: Owner,
    range: Range<usize>,
}

#[derive(Clone)]
enum Owner {
    File(Arc<Mmap>),
    Other(Arc<dyn AsRef<[u8]> + Send + Sync>),
}

impl Owner {
    fn bytes(&self) -> &[u8] {
        match self {
            Self::File(map) => map,
            Self::Other(owner) => (**owner).as_ref(),
        }
    }
}

impl SharedBytes {
    /// `range` of `owner`; `None` when it lies outside.
    #[must_use]
    pub fn new(owner: Arc<dyn AsRef<[u8]> + Send + Sync>, range: Range<usize>) -> Option<Self> {
        Self::of(Owner::Other(owner), range)
    }

    /// `range` of a mapped file; `None` when it lies outside.
    #[must_use]
    pub fn of_file(map: Arc<Mmap>, range: Range<usize>) -> Option<Self> {
        Self::of(Owner::File(map), range)
    }

    fn of(owner: Owner, range: Range<usize>) -> Option<Self> {
        (range.start <= range.end && range.end <= owner.bytes().len()).then_some(Self { owner, range })
    }

    /// The bytes.
    #[must_use]
    pub fn as_slice(&self) -> &[u8] {
        &self.owner.bytes()[self.range.clone()]
    }

    /// Says that the bytes will not be read for a while. Those of a mapped file leave the process's memory, and come back from
    /// the system's cache of the file when they are read again.
    pub fn release(&self) {
        #[cfg(unix)]
        if let Owner::File(map) = &self.owner {
            #[expect(unsafe_code, reason = "mapping a file is one of the four places where unsafe is allowed")]
            // SAFETY: the map is of a file and read-only, so what is given up is what the file has, and is read from there again.
            // Advice that is not taken costs memory and nothing else.
            let _ = unsafe { map.unchecked_advise_range(UncheckedAdvice::DontNeed, self.range.start, self.range.len()) };
        }
    }
}

impl fmt::Debug for SharedBytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SharedBytes({} bytes)", self.range.len())
    }
}

/// A tensor of a model folder, in its file's bytes (little-endian, row-major, any alignment).
#[derive(Debug, Clone)]
pub struct HostTensor {
    /// Name in the file, `model.layers.3.mlp.down_proj.weight`.
    pub name: String,
    /// The file it comes from, for messages.
    pub file: PathBuf,
    /// Element type.
    pub dtype: Dtype,
    /// Extents, outermost first.
    pub shape: Vec<usize>,
    /// `shape.product() * dtype.size()` bytes.
    pub bytes: SharedBytes,
}

impl HostTensor {
    /// A tensor of `values`, which are not in a file; `name` stands for it in messages. `None` unless there are
    /// `shape.product()` of them.
    #[must_use]
    pub fn from_f32(name: impl Into<String>, shape: &[usize], values: &[f32]) -> Option<Self> {
        if shape.iter().product::<usize>() != values.len() {
            return None;
        }
        let bytes: Vec<u8> = values.iter().flat_map(|x| x.to_le_bytes()).collect();
        let end = bytes.len();
        Some(Self {
            name: name.into(),
            file: PathBuf::new(),
            dtype: Dtype::F32,
            shape: shape.to_vec(),
            bytes: SharedBytes::new(Arc::new(bytes), 0..end)?,
        })
    }

    /// Number of elements.
    #[must_use]
    pub fn len(&self) -> usize {
        self.shape.iter().product()
    }

    /// True for a tensor without elements.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Elements `range` as f32, exactly (every supported dtype embeds in f32), appended to `out`.
    ///
    /// `range` must lie within the tensor.
    pub fn extend_f32(&self, range: Range<usize>, out: &mut Vec<f32>) {
        let size = self.dtype.size();
        let bytes = &self.bytes.as_slice()[range.start * size..range.end * size];
        match self.dtype {
            Dtype::F32 => out.extend(bytes.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b))),
            Dtype::F16 => out.extend(bytes.as_chunks::<2>().0.iter().map(|b| f16::from_le_bytes(*b).to_f32())),
            Dtype::Bf16 => out.extend(bytes.as_chunks::<2>().0.iter().map(|b| bf16::from_le_bytes(*b).to_f32())),
        }
    }

    /// All elements as f32; the bytes are [released](SharedBytes::release).
    #[must_use]
    pub fn to_f32(&self) -> Vec<f32> {
        let mut out = Vec::with_capacity(self.len());
        self.extend_f32(0..self.len(), &mut out);
        self.bytes.release();
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[test]
    fn what_was_released_can_be_read_again() {
        let bytes: Vec<u8> = (0..40_000_u32).flat_map(u32::to_le_bytes).collect();
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(&bytes).unwrap();
        let map = Arc::new(crate::io::map(file.path()).unwrap());
        // Begins and ends within a page.
        let range = 5000..130_001;
        for shared in [
            SharedBytes::of_file(Arc::clone(&map), range.clone()).unwrap(),
            SharedBytes::new(Arc::new(bytes.clone()), range.clone()).unwrap(),
        ] {
            assert_eq!(shared.as_slice(), &bytes[range.clone()]);
            shared.release();
            assert_eq!(shared.as_slice(), &bytes[range.clone()]);
        }
        assert!(SharedBytes::of_file(map, 0..bytes.len() + 1).is_none());
    }
}
