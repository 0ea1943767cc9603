import re,sys,textwrap
f=sys.argv[1]; lines=open(f).read().split('\n'); out=[]; i=0; fence=False
def special(l): return l.startswith(('#','|','    ','<!--','```','![')) or not l.strip()
while i<len(lines):
    l=lines[i]
    if l.startswith('```'): fence=not fence; out.append(l); i+=1; continue
    if fence or special(l): out.append(l); i+=1; continue
    m=re.match(r'(\s*)([-*]|\d+\.)\s',l); ind='' ; first=l
    sub=' '*len(m.group(0)) if m else re.match(r'\s*',l).group(0)
    para=[l.strip() if not m else l]; i+=1
    while i<len(lines) and not special(lines[i]) and not re.match(r'\s*([-*]|\d+\.)\s',lines[i]) and not (lines[i].startswith('       ') ):
        para.append(lines[i].strip()); i+=1
    t=' '.join(para)
    out+=textwrap.wrap(t,120,initial_indent='' if m else sub,subsequent_indent=sub,break_long_words=False,break_on_hyphens=False) if not m else textwrap.wrap(t,120,subsequent_indent=sub,break_long_words=False,break_on_hyphens=False,drop_whitespace=True)
open(f,'w').write('\n'.join(out))
