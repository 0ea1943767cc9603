"""Writes jobs.<list> for the lanes; every line is one command in a checkout of landing."""
T="SkipTuning FinetuneCLIP TwoSFS CLIPLoRA PromptSRC DePT CLIPSVD CoOp ProGrad KgCoOp MaPLe IVLP TCP CoPrompt MMRL MMRLpp ProLIP TipAdapterF CLIPAdapter".split()
R="0.001 0.003 0.01 0.0003 0.03".split()
C=("SkipTuning","CLIPAdapter")
def put(name, lines): open(f'/root/land/jobs.{name}','w').write('\n'.join(lines)+'\n'); print(name,len(lines))
search=[f'RATES={r} SEEDS=1 TRAINERS={t} bash scripts/choose.sh emoji' for t in T for r in R]
search+=[f'RATES={r} SEEDS=1 TRAINERS={t} PRESETS=cached bash scripts/choose.sh emoji' for t in C for r in R]
put('search',search)
put('curve',['RATES=0.001 SEEDS=1 TRAINERS=SkipTuning bash scripts/curve.sh emoji']+[l.replace('choose','curve') for l in search if 'cached' not in l][1:])
cmp=[]
for s in range(1,6):
    for t in T+['ZeroshotCLIP','TipAdapter','LPpp']:
        if t=='ZeroshotCLIP' and s>1: pass
        cmp.append(f'SEEDS={s} TRAINERS={t} PRESETS=recommended OPTIONS="TEST.TEMPERATURE auto" bash scripts/compare.sh emoji')
    for t in ('MMRL','MMRLpp'): cmp.append(f'SEEDS={s} TRAINERS={t} PRESETS=uniform OPTIONS="TEST.TEMPERATURE auto" bash scripts/compare.sh emoji')
    for t in C: cmp.append(f'SEEDS={s} TRAINERS={t} PRESETS=cached OPTIONS="TEST.TEMPERATURE auto" bash scripts/compare.sh emoji')
put('compare',cmp)
put('ablate',[f'SEEDS="{s}" bash scripts/skip/ablate_components.sh' for s in range(1,6)]+[f'SEEDS={s} bash scripts/skip/ablate_{w}.sh' for w in ('omega','ratio','lambda','choices') for s in (1,2,3)]+['PREC= SEEDS=1 bash scripts/skip/ablate_precision.sh'])
F={'ZeroshotCLIP':'zeroshot_clip','SkipTuning':'skip','FinetuneCLIP':'finetune_clip','TwoSFS':'two_sfs','CLIPLoRA':'clip_lora','PromptSRC':'promptsrc','DePT':'dept','CLIPSVD':'clip_svd','CoOp':'coop','KgCoOp':'kgcoop','TipAdapterF':'tip_adapter_f','LPpp':'lp_pp','MMRL':'mmrl'}
put('shots',[f'OUTPUT=output/shots bash scripts/{d}/few_shot.sh emoji 1 {k}' for k in (1,2,4) for d in F.values()])
put('own',[f'OUTPUT=output/own SEEDS={s} bash scripts/{d}/ablate_choices.sh' for d in ('mmrl','two_sfs','clip_svd','lp_pp') for s in (1,2,3)])
