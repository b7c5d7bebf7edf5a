// GEMM with an epilogue visitor tree for sm_90a (Hopper): TMA, warp-specialized wgmma, persistent blocks.
#pragma once

#include "call.cuh"
#include "cutlass/epilogue/collective/collective_builder.hpp"
#include "cutlass/epilogue/fusion/sm90_callbacks_tma_warpspecialized.hpp"
#include "cutlass/gemm/collective/collective_builder.hpp"
#include "cutlass/gemm/device/gemm_universal_adapter.h"
#include "cutlass/gemm/kernel/gemm_universal.hpp"

namespace sm90 {

using namespace cute;
namespace collective = cutlass::epilogue::collective;
namespace fusion = cutlass::epilogue::fusion;

// ElementC is void where no tile is loaded as C.
template <class Element_, class LayoutA_, class LayoutB_, class ElementC_, class ElementD_, class Tile_, class Cluster_,
          bool Pingpong_>
struct Config {
  using Element = Element_;
  using LayoutA = LayoutA_;
  using LayoutB = LayoutB_;
  using ElementC = ElementC_;
  using ElementD = ElementD_;
  using Tile = Tile_;
  using Cluster = Cluster_;
  using Mainloop = conditional_t<Pingpong_, cutlass::gemm::KernelTmaWarpSpecializedPingpong,
                                 cutlass::gemm::KernelTmaWarpSpecializedCooperative>;
  using Schedule = conditional_t<Pingpong_, cutlass::epilogue::TmaWarpSpecialized,
                                 cutlass::epilogue::TmaWarpSpecializedCooperative>;
  template <class T> static constexpr int kAlignment = 128 / cutlass::sizeof_bits<T>::value;
};

template <class C> struct Nodes {
  static constexpr auto kRound = cutlass::FloatRoundStyle::round_to_nearest;
  using Descriptor = collective::detail::EpilogueDescriptor<
      typename C::Tile, collective::EpilogueTileAuto, typename C::ElementC, typename C::ElementD, typename C::Schedule>;
  template <class T> using In = collective::detail::AuxLoadDescriptor<Descriptor, cutlass::layout::RowMajor, T>;
  template <class T> using Out = collective::detail::AuxStoreDescriptor<Descriptor, cutlass::layout::RowMajor, T>;
  using Accumulator = fusion::Sm90AccFetch;
  using Source = fusion::Sm90SrcFetch<typename C::ElementC>;
  template <class T>
  using Tile = fusion::Sm90AuxLoad<In<T>::Stages, typename Descriptor::EpilogueTile, T, typename In<T>::Stride,
                                   typename In<T>::SmemLayoutAtom, typename In<T>::CopyOpS2R>;
  template <class T> using Row = fusion::Sm90RowBroadcast<0, typename C::Tile, T, float, Stride<_0, _1, int64_t>>;
  template <class T> using Column = fusion::Sm90ColBroadcast<0, typename C::Tile, T, float, Stride<_1, _0, int64_t>>;
  template <class T> using Number = fusion::Sm90ScalarBroadcast<T>;
  template <class F> using Compute = fusion::Sm90Compute<Lifted<F>::template On, float, float, kRound>;
  template <class T>
  using Store = fusion::Sm90AuxStore<Out<T>::Stages, typename Descriptor::EpilogueTile, T, kRound,
                                     typename Out<T>::Stride, typename Out<T>::SmemLayoutAtom, typename Out<T>::CopyOpR2S>;
  template <class Edges, class... Ops> using Visitor = fusion::Sm90TopologicalVisitor<float, Edges, Ops...>;
};

template <class C, class Visitor> struct Gemm {
  using Source = conditional_t<is_void_v<typename C::ElementC>, typename C::ElementD, typename C::ElementC>;
  using Epilogue = typename collective::CollectiveBuilder<
      cutlass::arch::Sm90, cutlass::arch::OpClassTensorOp, typename C::Tile, typename C::Cluster,
      collective::EpilogueTileAuto, float, float, typename C::ElementC, cutlass::layout::RowMajor,
      C::template kAlignment<Source>, typename C::ElementD, cutlass::layout::RowMajor,
      C::template kAlignment<typename C::ElementD>, typename C::Schedule, Visitor>::CollectiveOp;
  using Mainloop = typename cutlass::gemm::collective::CollectiveBuilder<
      cutlass::arch::Sm90, cutlass::arch::OpClassTensorOp, typename C::Element, typename C::LayoutA,
      C::template kAlignment<typename C::Element>, typename C::Element, typename C::LayoutB,
      C::template kAlignment<typename C::Element>, float, typename C::Tile, typename C::Cluster,
      cutlass::gemm::collective::StageCountAutoCarveout<int(sizeof(typename Epilogue::SharedStorage))>,
      typename C::Mainloop>::CollectiveOp;
  using Kernel = cutlass::gemm::kernel::GemmUniversal<Shape<int, int, int, int>, Mainloop, Epilogue>;
  using Device = cutlass::gemm::device::GemmUniversalAdapter<Kernel>;

  // b is (n, k, l): stored n k, its rows are n; stored k n, its rows are k.
  template <class S> static S stride(int64_t ld, int64_t batch) {
    S result{};
    if constexpr (is_static_v<tuple_element_t<0, S>>) get<1>(result) = ld; else get<0>(result) = ld;
    get<2>(result) = batch;
    return result;
  }

  static int run(Call const &call, typename Visitor::Arguments const &epilogue, void const *source) {
    int device_id = 0;
    cudaGetDevice(&device_id);
    cutlass::KernelHardwareInfo hardware{device_id, int(call.processors)};
    int64_t const batch = call.l == 1 ? 0 : 1;
    using Matrix = Stride<int64_t, _1, int64_t>;
    Matrix const result{call.n, _1{}, batch * call.m * call.n};
    typename Device::Arguments arguments{
        cutlass::gemm::GemmUniversalMode::kGemm,
        {int(call.m), int(call.n), int(call.k), int(call.l)},
        {static_cast<typename C::Element const *>(call.a),
         stride<typename Kernel::StrideA>(call.lda, batch * call.m * call.k),
         static_cast<typename C::Element const *>(call.b),
         stride<typename Kernel::StrideB>(call.ldb, batch * call.n * call.k)},
        {epilogue, static_cast<typename C::ElementC const *>(source), result, call.store<typename C::ElementD>(0), result},
        hardware};
    return start<Device>(arguments, call.stream);
  }
};

}  // namespace sm90
