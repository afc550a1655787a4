// One core's limit for sums over neighbours: a uniform grid by counting sort, coordinates sorted into cells, one array
// per quantity, and rows of cells scanned as one run. The benchmark compiles it and runs it next to ours.
// Work, once per repetition, sorting included: n entities, 2.5 per unit cell of a square; for each the sums over the
// others within distance 1 of: 1, x/(q+0.001), y/(q+0.001), x, y, vx, vy, where (x, y) leads to the other and q = x²+y².
// Usage: neighbor_sum N REPETITIONS   prints seconds per repetition (best of 5 rounds) and the mean neighbour count.
#include <algorithm>
#include <array>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <numeric>
#include <random>
#include <vector>

namespace {

struct Columns {
  std::vector<float> x, y, vx, vy;
  explicit Columns(int n) : x(n), y(n), vx(n), vy(n) {}
};

class Grid {
 public:
  Grid(int n, int side) : side_(side), first_(side * side + 1), cell_(n), slot_(n), sorted_(n), sums_(n) {}

  void sum(const Columns& entities) {
    sort(entities);
    for (int row = 0; row < side_; row++)
      for (int column = 0; column < side_; column++) sum_cell(row, column);
  }

  double mean_count() const {
    double total = 0;
    for (const auto& s : sums_) total += s[0];
    return total / sums_.size();
  }

 private:
  void sort(const Columns& entities) {
    const int n = int(cell_.size());
    std::fill(first_.begin(), first_.end(), 0);
    for (int i = 0; i < n; i++) {
      cell_[i] = clipped(entities.y[i]) * side_ + clipped(entities.x[i]);
      first_[cell_[i] + 1]++;
    }
    std::partial_sum(first_.begin(), first_.end(), first_.begin());
    std::vector<int> free(first_.begin(), first_.end() - 1);
    for (int i = 0; i < n; i++) {
      const int to = free[cell_[i]]++;
      slot_[to] = i;
      sorted_.x[to] = entities.x[i], sorted_.y[to] = entities.y[i];
      sorted_.vx[to] = entities.vx[i], sorted_.vy[to] = entities.vy[i];
    }
  }

  void sum_cell(int row, int column) {
    const int left = std::max(0, column - 1), right = std::min(side_ - 1, column + 1);
    const int low = std::max(0, row - 1), high = std::min(side_ - 1, row + 1), cell = row * side_ + column;
    for (int i = first_[cell]; i < first_[cell + 1]; i++) {
      const float here_x = sorted_.x[i], here_y = sorted_.y[i];
      float a = 0, b = 0, c = 0, d = 0, e = 0, f = 0, g = 0;
      for (int r = low; r <= high; r++) {
        const int end = first_[r * side_ + right + 1];
#pragma omp simd reduction(+ : a, b, c, d, e, f, g)
        for (int j = first_[r * side_ + left]; j < end; j++) {
          const float x = sorted_.x[j] - here_x, y = sorted_.y[j] - here_y, q = x * x + y * y;
          const float near = q > 0.f && q < 1.f ? 1.f : 0.f, inverse = near / (q + 1e-3f);
          a += near, b += x * inverse, c += y * inverse, d += near * x, e += near * y;
          f += near * sorted_.vx[j], g += near * sorted_.vy[j];
        }
      }
      sums_[slot_[i]] = {a, b, c, d, e, f, g};
    }
  }

  int clipped(float v) const { return std::min(side_ - 1, int(v)); }

  int side_;
  std::vector<int> first_, cell_, slot_;
  Columns sorted_;
  std::vector<std::array<float, 7>> sums_;
};

}  // namespace

int main(int argc, char** argv) {
  if (argc != 3) return std::fprintf(stderr, "usage: neighbor_sum N REPETITIONS\n"), 2;
  const int n = std::atoi(argv[1]), repetitions = std::atoi(argv[2]);
  int side = 1;
  while (2.5 * side * side < n) side++;
  std::mt19937 random(0);
  std::uniform_real_distribution<float> place(0, side);
  std::normal_distribution<float> rate;
  Columns entities(n);
  for (int i = 0; i < n; i++) entities.x[i] = place(random), entities.y[i] = place(random);
  for (int i = 0; i < n; i++) entities.vx[i] = rate(random), entities.vy[i] = rate(random);
  Grid grid(n, side);
  grid.sum(entities);
  double best = 1e9;
  for (int round = 0; round < 5; round++) {
    const auto begin = std::chrono::steady_clock::now();
    for (int r = 0; r < repetitions; r++) grid.sum(entities);
    const std::chrono::duration<double> spent = std::chrono::steady_clock::now() - begin;
    best = std::min(best, spent.count() / repetitions);
  }
  std::printf("%.9f %.4f\n", best, grid.mean_count());
}
