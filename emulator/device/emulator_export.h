// The macros of device.cuh for the emulated device, and what a kernel's registration tells: how to call it with the driver's
// array of argument pointers, and the types of its parameters.
#pragma once

#include <string_view>

#include "cuda_bf16.h"

// The lambda's own static tells instantiations of a template apart, each of which has its own array on the device too.
#define SHARED_ARRAY(T, name, n)                                                                        \
    T(&name)                                                                                            \
    [n] = *static_cast<T(*)[n]>(                                                                        \
        ::emu::static_shared(sizeof(T) * (n), alignof(T) < 16 ? 16 : alignof(T), ([]() -> const void* { \
                                 static const char key = 0;                                             \
                                 return &key;                                                           \
                             })()))

#define DYN_SMEM(name) unsigned char* name = ::emu::dynamic_shared()

#define EXPORT_KERNEL(name, ...) \
    static ::emu::Registrar emulator_registrar_##name{#name, ::emu::Exported<&name>{}, {__VA_ARGS__}};

namespace emu {

// The name of a type as the compiler spells it, at compile time.
template <typename T>
constexpr std::string_view spelled() {
    std::string_view text = __PRETTY_FUNCTION__;  // ".. [T = Sizes]" (clang), ".. [with T = Sizes; ..]" (g++)
    text.remove_prefix(text.find("T = ") + 4);
    return text.substr(0, text.find_first_of(";]"));
}

// As kernels write it, whatever the type is an alias of.
template <typename T>
constexpr std::string_view type_name() {
    if constexpr (std::is_same_v<T, __nv_bfloat16>) {
        return "bf16";
    } else if constexpr (std::is_same_v<T, uint8_t>) {
        return "uint8_t";
    } else if constexpr (std::is_integral_v<T> && sizeof(T) == 2) {
        return std::is_signed_v<T> ? "int16_t" : "uint16_t";
    } else if constexpr (std::is_integral_v<T> && sizeof(T) == 4) {
        return std::is_signed_v<T> ? "int32_t" : "uint32_t";
    } else if constexpr (std::is_integral_v<T> && sizeof(T) == 8) {
        return std::is_signed_v<T> ? "int64_t" : "uint64_t";
    } else {
        return spelled<T>();
    }
}

// "const bf16*", "float*", "uint32_t", "RmsNormSizes", with a terminating zero.
template <typename P>
struct TypeText {
    using Pointee = std::remove_pointer_t<P>;
    static constexpr std::string_view base = type_name<std::remove_cv_t<Pointee>>();
    static constexpr bool pointer = std::is_pointer_v<P>, constant = pointer && std::is_const_v<Pointee>;
    char text[base.size() + 8] = {};
    constexpr TypeText() {
        size_t n = 0;
        for (char c : std::string_view(constant ? "const " : "")) {
            text[n++] = c;
        }
        for (char c : base) {
            text[n++] = c;
        }
        if (pointer) {
            text[n++] = '*';
        }
    }
};
template <typename P>
inline constexpr TypeText<std::remove_cv_t<P>> type_text;

template <typename P>
constexpr size_t pointee_alignment() {
    if constexpr (std::is_pointer_v<P>) {
        return std::is_void_v<std::remove_pointer_t<P>> ? 1 : alignof(std::remove_pointer_t<P>);
    } else {
        return 0;
    }
}

template <auto F>
struct Exported;
template <typename... P, void (*F)(P...)>
struct Exported<F> {
    template <size_t... I>
    static void call(void** arguments, std::index_sequence<I...>) {
        F(*static_cast<std::remove_cv_t<P>*>(arguments[I])...);
    }
    static void run(void** arguments) { call(arguments, std::index_sequence_for<P...>{}); }
    static constexpr Parameter parameters[sizeof...(P) + 1] = {
        {type_text<P>.text, sizeof(P), alignof(P), pointee_alignment<std::remove_cv_t<P>>()}..., {}};
    static constexpr int count = sizeof...(P);
};

struct Registrar {
    struct Bounds {
        unsigned max_threads = 1024;
    };
    template <auto F>
    Registrar(const char* name, Exported<F>, Bounds bounds) {
        register_kernel({name, &Exported<F>::run, Exported<F>::parameters, Exported<F>::count, bounds.max_threads});
    }
};

}  // namespace emu
