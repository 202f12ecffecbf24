# What every process of a search needs to know. The queue scripts source it; source it yourself before you type anything.
export FW_CONFIG_FILE=@folder@/FW_config.yaml
export JOBFLOW_CONFIG_FILE=@folder@/jobflow.yaml
export ATOMATE2_CONFIG_FILE=@folder@/atomate2.yaml
# Which worker and which queue settings each stage asks for.
export HULLSEEKER_RESOURCES=@folder@/resources.yaml
# Long jobs keep here what they have done, so that a killed one goes on. All nodes must see it.
export HULLSEEKER_SCRATCH=@folder@/scratch   # <- a fast shared file system
export OMP_NUM_THREADS=1
export PATH=@bin@:$PATH
# module load vasp   # <- whatever your label section needs
