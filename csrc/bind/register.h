// One function per family of ops: it adds the family's ops to the module.
#pragma once
#include <pybind11/pybind11.h>

namespace mingcore {

void register_gemm(pybind11::module_& m);
void register_activation(pybind11::module_& m);
void register_norm(pybind11::module_& m);
void register_rotary(pybind11::module_& m);
void register_routing(pybind11::module_& m);
void register_moe(pybind11::module_& m);
void register_attention(pybind11::module_& m);
void register_flow(pybind11::module_& m);
void register_conv(pybind11::module_& m);
void register_spectrum(pybind11::module_& m);
void register_probe(pybind11::module_& m);

}  // namespace mingcore
