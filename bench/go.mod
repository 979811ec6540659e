module modelyard/bench

go 1.21
