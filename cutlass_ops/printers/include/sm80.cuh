// GEMM with an epilogue visitor tree from sm_80 (Ampere, Ada): cp.async stages, warp mma.
#pragma once

#include "call.cuh"
#include "cutlass/gemm/device/gemm_universal_adapter.h"
#include "cutlass/gemm/kernel/default_gemm_universal_with_visitor.h"
// after the two, which it leans on without including them
#include "cutlass/epilogue/threadblock/fusion/visitors.hpp"

namespace sm80 {

using namespace cute;
namespace visitor = cutlass::epilogue::threadblock;

template <class Element_, class LayoutA_, class LayoutB_, class ElementD_, class Tile_, class Warp_, int Stages_>
struct Config {
  using Element = Element_;
  using LayoutA = LayoutA_;
  using LayoutB = LayoutB_;
  using ElementD = ElementD_;
  using Tile = Tile_;
  using Warp = Warp_;
  static constexpr int kStages = Stages_;
  static constexpr int kAlignment = 128 / cutlass::sizeof_bits<Element>::value;
  static constexpr int kAlignmentD = 128 / cutlass::sizeof_bits<ElementD>::value;
};

template <class C> struct Nodes {
  static constexpr auto kRound = cutlass::FloatRoundStyle::round_to_nearest;
  using Map = visitor::OutputTileThreadLayout<typename C::Tile, typename C::Warp, typename C::ElementD, C::kAlignmentD, 1>;
  using Matrix = Stride<int64_t, _1, int64_t>;
  using Accumulator = visitor::VisitorAccFetch;
  template <class T> using Tile = visitor::VisitorAuxLoad<Map, T, Matrix>;
  template <class T> using Row = visitor::VisitorRowBroadcast<Map, T, Stride<_0, _1, int64_t>>;
  template <class T> using Column = visitor::VisitorColBroadcast<Map, T, Stride<_1, _0, int64_t>>;
  template <class T> using Number = visitor::VisitorScalarBroadcast<T>;
  template <class F> using Compute = visitor::VisitorCompute<Lifted<F>::template On, float, float, kRound>;
  template <class T> using Store = visitor::VisitorAuxStore<Map, T, kRound, Matrix>;
  template <class Edges, class... Ops> using Visitor = visitor::Sm80TopologicalVisitor<float, Edges, Ops...>;
};

template <class C, class Epilogue> struct Gemm {
  using Kernel = typename cutlass::gemm::kernel::DefaultGemmWithVisitor<
      typename C::Element, typename C::LayoutA, cutlass::ComplexTransform::kNone, C::kAlignment,
      typename C::Element, typename C::LayoutB, cutlass::ComplexTransform::kNone, C::kAlignment,
      typename C::ElementD, cutlass::layout::RowMajor, C::kAlignmentD, float, float,
      cutlass::arch::OpClassTensorOp, cutlass::arch::Sm80, typename C::Tile, typename C::Warp,
      cutlass::gemm::GemmShape<16, 8, 16>, Epilogue, cutlass::gemm::threadblock::GemmIdentityThreadblockSwizzle<8>,
      C::kStages, cutlass::arch::OpMultiplyAdd, 1>::GemmKernel;
  using Device = cutlass::gemm::device::GemmUniversalAdapter<Kernel>;

  static int run(Call const &call, typename Epilogue::Arguments const &epilogue) {
    auto mode = call.l == 1 ? cutlass::gemm::GemmUniversalMode::kGemm : cutlass::gemm::GemmUniversalMode::kBatched;
    typename Device::Arguments arguments(
        mode, {int(call.m), int(call.n), int(call.k)}, int(call.l), epilogue,
        static_cast<typename C::Element const *>(call.a), static_cast<typename C::Element const *>(call.b),
        nullptr, nullptr, call.m * call.k, call.n * call.k, 0, 0, call.lda, call.ldb, 0, 0);
    return start<Device>(arguments, call.stream);
  }
};

}  // namespace sm80
