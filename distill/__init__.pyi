from data.softlabels import read_store as read_store
from distill.average import average_runs as average_runs
from distill.doctor.examine import diagnose as diagnose
from distill.doctor.finding import Result as Result
from distill.runs.loaded import Loaded as Loaded
from distill.runs.loaded import load_run as load_run
from distill.student import train_student as train_student
from distill.teacher_oof import cross_fit as cross_fit
