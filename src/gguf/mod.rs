//! GGUF files (what llama.cpp ships) to Hugging Face folders.
