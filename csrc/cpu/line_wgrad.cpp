#include <stdexcept>
#include "conv.h"
namespace fused_resnet {
inline namespace FUSED_RESNET_TARGET {
template <int kParts>
void line_wgrad(const ConvShape&, const Source<float>&, const Source<float>&, int, float*, const FilterStrides&) {
  throw std::runtime_error("not yet");
}
#define I(k) template void line_wgrad<k>(const ConvShape&, const Source<float>&, const Source<float>&, int, float*, const FilterStrides&);
I(1) I(2) I(3)
}}
