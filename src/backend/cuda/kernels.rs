//! What build.rs made of kernels/*.cu: a constant a kernel, the compiled images, and which GPUs they run on.

/// A kernel, by the file it stands in. Constants of this type come from build.rs, so that a kernel that is not there does
/// not compile.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Kernel {
    /// Its symbol.
    pub name: &'static str,
    /// kernels/FILE.cu.
    pub file: &'static str,
    /// Types of its parameters as its source spells them: what a launch is compared with.
    pub parameters: &'static str,
}

include!(concat!(env!("OUT_DIR"), "/cuda_kernels.rs"));

/// The compiled image of kernels/FILE.cu, or `None` where this build has no kernels.
#[must_use]
pub fn image(file: &str) -> Option<&'static [u8]> {
    CUDA_KERNELS?.iter().find(|(name, _)| *name == file).map(|&(_, bytes)| bytes)
}

/// How the kernels of this build reach a GPU.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Coverage {
    /// Machine code for it is in the binary.
    MachineCode,
    /// Its driver compiles them at the first start.
    Ptx,
    /// It is older than anything we build for.
    None,
}

/// How a GPU of compute capability `major.minor` is covered, kernels or not.
#[must_use]
pub fn coverage(major: u32, minor: u32) -> Coverage {
    let machine_code = MACHINE_CODE.iter().any(|&(a, b, exact)| a == major && if exact { b == minor } else { b <= minor });
    if machine_code {
        Coverage::MachineCode
    } else if PTX.iter().any(|&oldest| oldest <= (major, minor)) {
        Coverage::Ptx
    } else {
        Coverage::None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gpus_are_covered_as_nvidia_defines_it() {
        // A100, A40, L4, H100, B200, B300, RTX 5090, GB10.
        for (major, minor) in [(8, 0), (8, 6), (8, 9), (9, 0), (10, 0), (10, 3), (12, 0), (12, 1)] {
            assert_eq!(coverage(major, minor), Coverage::MachineCode, "{major}.{minor}");
        }
        // Orin has code of its family, Thor and what is to come only PTX, Turing and Volta nothing.
        assert_eq!(coverage(8, 7), Coverage::MachineCode);
        assert_eq!([coverage(11, 0), coverage(13, 0)], [Coverage::Ptx; 2]);
        assert_eq!([coverage(7, 5), coverage(7, 0)], [Coverage::None; 2]);
        // Code for exactly 9.0 does not run on a 9.x.
        assert_eq!(coverage(9, 1), Coverage::Ptx);
    }

    #[test]
    fn every_image_is_a_fatbin_that_is_all_there() {
        let parameters = "bf16*, const float*, const float*, RmsNormSizes";
        assert_eq!(RMS_NORM_BF16_F32, Kernel { name: "rms_norm_bf16_f32", file: "rms_norm", parameters });
        assert_eq!(CUDA_KERNELS.is_some(), NVCC_VERSION.is_some());
        for (file, bytes) in CUDA_KERNELS.into_iter().flatten() {
            // struct fatBinaryHeader of fatbinary.h: magic, version, header size, size of what follows; little endian.
            assert_eq!(bytes[..4], 0xBA55_ED50_u32.to_le_bytes(), "{file}");
            let header = usize::from(u16::from_le_bytes([bytes[6], bytes[7]]));
            let rest = u64::from_le_bytes(bytes[8..16].try_into().unwrap());
            assert_eq!(bytes.len(), header + usize::try_from(rest).unwrap(), "{file}");
            assert_eq!(entries(&bytes[header..]), expected_entries(), "{file}");
        }
    }

    /// (PTX or ELF, architecture) of each entry: kind and header size lie at 0 and 4, the payload's size at 8, the
    /// architecture at 28 of its header, as `cuobjdump --list-elf --list-ptx` reads them.
    fn entries(mut bytes: &[u8]) -> Vec<(u16, u32)> {
        let mut found = Vec::new();
        while bytes.len() >= 32 {
            let kind = u16::from_le_bytes([bytes[0], bytes[1]]);
            let header = u32::from_le_bytes(bytes[4..8].try_into().unwrap());
            let payload = u64::from_le_bytes(bytes[8..16].try_into().unwrap());
            assert!(payload > 0, "an empty image");
            found.push((kind, u32::from_le_bytes(bytes[28..32].try_into().unwrap())));
            bytes = &bytes[usize::try_from(u64::from(header) + payload).unwrap()..];
        }
        found.sort_unstable();
        found
    }

    fn expected_entries() -> Vec<(u16, u32)> {
        let ptx = PTX.iter().map(|(major, minor)| (1, major * 10 + minor));
        ptx.chain(MACHINE_CODE.iter().map(|(major, minor, _)| (2, major * 10 + minor))).collect()
    }
}
