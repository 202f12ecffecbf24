# What every process of a search needs to know. The queue scripts source it; source it yourself before you type anything.
export FW_CONFIG_FILE=/home/me/hullseeker/FW_config.yaml
export JOBFLOW_CONFIG_FILE=/home/me/hullseeker/jobflow.yaml
export ATOMATE2_CONFIG_FILE=/home/me/hullseeker/atomate2.yaml
# Which worker and which queue settings each stage asks for.
export HULLSEEKER_RESOURCES=/home/me/hullseeker/resources.yaml
# Long jobs keep here what they have done, so that a killed one goes on. All nodes must see it.
export HULLSEEKER_SCRATCH=/home/me/hullseeker/scratch   # <- a fast shared file system
export OMP_NUM_THREADS=1
export PATH=/home/me/hullseeker/.venv/bin:$PATH
# module load vasp   # <- whatever your label section needs
