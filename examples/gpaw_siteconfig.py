"""Settings for compiling GPAW with nothing but Python and g++ (no BLAS, libxc, MPI or FFTW from the system)."""

nolibxc = True
noblas = True
mpi = False
fftw = False
scalapack = False
libraries = []
compiler = "g++"  # GPAW has C++ sources; the default compiler cannot find <algorithm>
