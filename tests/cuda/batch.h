// Drawn numbers, batches as the host plans them, and what counts the checks.
#pragma once

#include <algorithm>
#include <map>
#include <random>
#include <string>

namespace {

std::mt19937 generator(7);
int failures = 0, checks = 0;
bool few;  // checks: for sanitizers, under which each takes ten times as long

float draw(float deviation = 1.0f) { return std::normal_distribution<float>(0.0f, deviation)(generator); }
int between(int from, int to) { return std::uniform_int_distribution<int>(from, to)(generator); }
double wide(bf16 x) { return from_bf16(x); }

std::vector<bf16> halves(size_t count, float deviation = 1.0f) {
    std::vector<bf16> values(count);
    for (auto& value : values) value = to_bf16(draw(deviation));
    return values;
}

std::vector<float> floats(size_t count, float mean = 0.0f) {
    std::vector<float> values(count);
    for (auto& value : values) value = mean + draw(0.5f);
    return values;
}

std::vector<double> doubles(const std::vector<bf16>& values) {
    std::vector<double> wider;
    for (bf16 value : values) wider.push_back(wide(value));
    return wider;
}

// Largest difference, in units of the reference's root mean square.
void compare(const std::string& what, const std::vector<double>& ours, const std::vector<double>& expected, double most) {
    double squares = 0, difference = 0;
    for (size_t i = 0; i < expected.size(); ++i) {
        squares += expected[i] * expected[i];
        difference = std::max(difference, std::isfinite(ours[i]) ? std::fabs(ours[i] - expected[i]) : INFINITY);
    }
    difference /= std::sqrt(squares / expected.size()) + 1e-30;
    ++checks;
    if (ours.size() != expected.size() || !(difference <= most)) {
        ++failures;
        printf("FAILED %s: off by %.3g, at most %.3g\n", what.c_str(), difference, most);
    }
}

void equal(const std::string& what, bool same) {
    ++checks;
    if (!same) {
        ++failures;
        printf("FAILED %s: not the same bits\n", what.c_str());
    }
}

// A segment of a tree of tokens, or of what is cached (then it has no rows).
struct Segment {
    int parent, row, count, position;
};

// A batch as the host plans it.
struct Batch {
    std::vector<Segment> segments;
    std::vector<int> tokens, positions, slots, answers, answer_segments, wide, blocks;
    std::vector<Run> runs;
    std::vector<Tile> tiles, answer_tiles;
    std::vector<std::pair<int, int>> segment_runs;
    std::vector<int> words;
    int past = 0;  // cached tokens before every root

    int add(int parent, int count) {
        int position = parent < 0 ? past : segments[parent].position + segments[parent].count;
        segments.push_back({parent, static_cast<int>(tokens.size()), count, position});
        for (int i = 0; i < count; ++i) {
            tokens.push_back(between(0, 9));
            positions.push_back(position + i);
            slots.push_back(-1);
        }
        return static_cast<int>(segments.size()) - 1;
    }

    std::vector<int> path(int segment) const {
        std::vector<int> found;
        for (; segment >= 0; segment = segments[segment].parent) found.insert(found.begin(), segment);
        return found;
    }

    template <class T>
    void put(int at, const std::vector<T>& list) {
        while (words.size() % 4 != 0) words.push_back(0);
        words[at] = static_cast<int>(words.size());
        size_t begin = words.size();
        words.resize(begin + list.size() * sizeof(T) / 4);
        if (!list.empty()) memcpy(&words[begin], list.data(), list.size() * sizeof(T));
    }

    void plan(int group) {
        int most = TILE_ROWS / group;
        for (size_t s = 0; s < segments.size(); ++s) {
            int first_run = static_cast<int>(runs.size());
            if (past > 0) {
                // Two runs, the second from the middle of a block.
                int cut = past / 2;
                runs.push_back({0, cut, ~0, 0});
                runs.push_back({cut, past - cut, ~(cut / BLOCK_TOKENS), cut % BLOCK_TOKENS});
                if (cut == 0) runs.erase(runs.end() - 2);
            }
            for (int part : path(static_cast<int>(s)))
                runs.push_back({segments[part].position, segments[part].count, segments[part].row, 0});
            int count = static_cast<int>(runs.size()) - first_run;
            segment_runs.push_back({first_run, count});
            const Segment& own = segments[s];
            for (int from = 0; from < own.count; from += most)
                tiles.push_back({own.row + from, std::min(most, own.count - from), own.position + from, first_run, count, {}});
        }
        for (size_t i = 0; i < answers.size(); ++i) {
            auto [first_run, count] = segment_runs[answer_segments[i]];
            answer_tiles.push_back({static_cast<int>(i), 1, positions[answers[i]], first_run, count, {}});
        }
        words.assign(HEADER, 0);
        words[ROWS] = static_cast<int>(tokens.size());
        words[ANSWERS] = static_cast<int>(answers.size());
        words[TILES] = static_cast<int>(tiles.size());
        words[WIDE] = static_cast<int>(wide.size());
        put(TOKENS, tokens), put(POSITIONS, positions), put(SLOTS, slots), put(ANSWER_ROWS, answers);
        put(ALL_TILES, tiles), put(ANSWER_TILES, answer_tiles), put(WIDE_ANSWERS, wide);
        put(RUNS, runs), put(BLOCKS, blocks);
    }

    void answer(int segment) {
        answers.push_back(segments[segment].row + segments[segment].count - 1);
        answer_segments.push_back(segment);
    }
};

}  // namespace
