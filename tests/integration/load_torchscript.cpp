// Does what Triton's C++ libtorch backend does with a model repository: loads both files and runs
// one after the other. Prints each number of the embeddings, ids and scores on a line of its own.
//
//   load_torchscript ENCODER_FILE SIMILARITY_FILE BATCH HEIGHT WIDTH < pixels (float32)

#include <torch/script.h>

#include <cstdio>
#include <cstdlib>
#include <vector>

static void print(const char* name, const torch::Tensor& tensor) {
  const torch::Tensor numbers = tensor.to(torch::kFloat64).contiguous().view(-1);
  for (int64_t i = 0; i < numbers.numel(); ++i)
    std::printf("%s %.9g\n", name, numbers.data_ptr<double>()[i]);
}

int main(int argc, char** argv) {
  if (argc != 6) return 2;
  c10::InferenceMode no_gradients;
  torch::jit::Module encoder = torch::jit::load(argv[1], torch::kCPU);
  torch::jit::Module similarity = torch::jit::load(argv[2], torch::kCPU);

  const int64_t batch = std::atoll(argv[3]), height = std::atoll(argv[4]), width = std::atoll(argv[5]);
  std::vector<float> pixels(batch * 3 * height * width);
  if (std::fread(pixels.data(), sizeof(float), pixels.size(), stdin) != pixels.size()) return 3;
  const torch::Tensor images = torch::from_blob(pixels.data(), {batch, 3, height, width});

  // The backend takes a tensor, or a tuple of tensors in the order of the outputs.
  const torch::Tensor embeddings = encoder.forward({images}).toTensor();
  const auto neighbors = similarity.forward({embeddings}).toTuple();
  print("embeddings", embeddings);
  print("ids", neighbors->elements().at(0).toTensor());
  print("scores", neighbors->elements().at(1).toTensor());
}
