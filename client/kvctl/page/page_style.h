// Style and script of the exporter's page.
#pragma once

#include <string_view>

namespace kvm::ctl {

inline constexpr std::string_view kPageStyle = R"(
:root{color-scheme:light dark;--bg:#fff;--card:#f5f6f8;--ink:#1b1f24;--dim:#57606a;--line:#d5d9df;--found:#1a6fd4;--bad:#b42318;--good:#1a7f37;
--m0:#9aa4b2;--m1:#c4320a;--m2:#b7791f;--m3:#7a3fc0;--m4:#4f8f8b;--m5:#c11574}
@media(prefers-color-scheme:dark){:root{--bg:#0f1216;--card:#191e24;--ink:#e6e9ee;--dim:#9aa4b2;--line:#313944;--found:#5aa7ff;--bad:#ff8a7a;--good:#5fd07e;
--m0:#6f7a88;--m1:#ff8355;--m2:#e3b341;--m3:#b58cf5;--m4:#6fc2bd;--m5:#ff7ab8}}
*{box-sizing:border-box}
body{margin:0;background:var(--bg);color:var(--ink);font:14px/1.45 system-ui,sans-serif}
main{max-width:1560px;margin:0 auto;padding:12px}
header{display:flex;flex-wrap:wrap;gap:4px 16px;align-items:baseline;margin-bottom:10px}
h1{font-size:18px;margin:0}h2{font-size:14px;margin:0 0 8px}h3{font-size:13px;margin:0 0 6px;overflow-wrap:anywhere}
header p,.none,.note{margin:0;color:var(--dim)}
.bad{color:var(--bad)}.good{color:var(--good)}
.tiles,.devices{display:grid;gap:10px;margin-bottom:10px}
.tiles{grid-template-columns:repeat(auto-fit,minmax(150px,1fr))}
.columns{columns:620px 2;column-gap:10px}.columns section{break-inside:avoid;margin-bottom:10px}
.devices{grid-template-columns:repeat(auto-fit,minmax(min(100%,260px),1fr))}
section,.tile{background:var(--card);border:1px solid var(--line);border-radius:8px;padding:10px;min-width:0}
.tile p{margin:0;color:var(--dim)}.tile strong{font-size:17px;font-weight:600}
.device{border:1px solid var(--line);border-radius:6px;padding:8px;min-width:0}
.fill{height:8px;background:var(--line);border-radius:4px;overflow:hidden;margin:2px 0 8px}.fill i{display:block;height:100%;background:var(--found)}
.device p{margin:0}
.scroll{overflow-x:auto}
table{border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums}
th,td{text-align:left;padding:3px 10px 3px 0;border-bottom:1px solid var(--line);white-space:nowrap}
th{color:var(--dim);font-weight:500}td.n,th.n{text-align:right}.t{white-space:normal;overflow-wrap:anywhere;min-width:12em}
code{font:12px ui-monospace,monospace}
.chart{display:flex;gap:6px;height:130px}.chart svg{flex:1;min-width:0;height:100%;border-left:1px solid var(--line);border-bottom:1px solid var(--line)}
.scale{display:flex;flex-direction:column;justify-content:space-between;margin:0;color:var(--dim);font-size:12px;text-align:right;min-width:40px}
.axis{display:flex;justify-content:space-between;margin:2px 0 8px 46px;color:var(--dim);font-size:12px}
.grid{stroke:var(--line);fill:none;vector-effect:non-scaling-stroke}
.found{stroke:var(--found);stroke-width:2;fill:none;vector-effect:non-scaling-stroke}
.key{display:inline-block;width:10px;height:10px;border-radius:2px;margin-right:6px}
.m0{fill:var(--m0);background:var(--m0)}.m1{fill:var(--m1);background:var(--m1)}.m2{fill:var(--m2);background:var(--m2)}
.m3{fill:var(--m3);background:var(--m3)}.m4{fill:var(--m4);background:var(--m4)}.m5{fill:var(--m5);background:var(--m5)}
@media(max-width:620px){.wide{display:none}.t{min-width:0}th,td{padding-right:6px}main{padding:8px}.tiles{grid-template-columns:1fr 1fr}}
)";

// Without a script the page stays as it was loaded.
inline constexpr std::string_view kPageScript = R"(
setInterval(async()=>{
if(document.hidden||String(getSelection()))return;
try{
const text=await(await fetch("/")).text();
const next=new DOMParser().parseFromString(text,"text/html").querySelector("main");
const at=[...document.querySelectorAll(".scroll")].map(e=>e.scrollLeft);
document.querySelector("main").replaceWith(next);
document.querySelectorAll(".scroll").forEach((e,i)=>{e.scrollLeft=at[i]||0});
}catch{
document.getElementById("asof").textContent="the exporter does not answer";
}
},5000);
)";

}  // namespace kvm::ctl
